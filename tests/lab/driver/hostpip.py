"""The host's own package index settings, given to pip and uv while images are built."""

from __future__ import annotations

import ast
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from .process import host

CA_NAMES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
PROXY_NAMES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@dataclass(frozen=True)
class PipSettings:
    """Index settings of the host; empty means pip's own default."""

    index: str = ""
    extra: tuple[str, ...] = ()
    links: tuple[str, ...] = ()
    cert: str = ""
    trusted: tuple[str, ...] = ()

    def pip_env(self) -> dict[str, str]:
        """Environment for pip, with the proxy of the host."""
        env = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
        env["PIP_DEFAULT_TIMEOUT"] = "120"
        if self.index:
            env["PIP_INDEX_URL"] = self.index
        if self.extra:
            env["PIP_EXTRA_INDEX_URL"] = " ".join(self.extra)
        if self.links:
            env["PIP_FIND_LINKS"] = " ".join(self.links)
        if self.cert:
            env["PIP_CERT"] = env["SSL_CERT_FILE"] = env["REQUESTS_CA_BUNDLE"] = self.cert
        if self.trusted:
            env["PIP_TRUSTED_HOST"] = " ".join(self.trusted)
        return env | {name: os.environ[name] for name in PROXY_NAMES if os.environ.get(name)}

    def uv_env(self) -> dict[str, str]:
        """Environment for uv. Extra indexes and links are local additions and left out: uv
        would stop at the first index that knows a name."""
        env = {"UV_NO_PROGRESS": "1", "UV_LINK_MODE": "copy", "UV_PYTHON_DOWNLOADS": "never"}
        if self.index:
            env["UV_DEFAULT_INDEX"] = self.index
        if self.cert:
            env["SSL_CERT_FILE"] = self.cert
        if self.trusted:
            env["UV_INSECURE_HOST"] = " ".join(self.trusted)
        return env | {name: os.environ[name] for name in PROXY_NAMES if os.environ.get(name)}

    def paths(self) -> list[Path]:
        """Local files and folders that the settings name; a chamber must see them."""
        named = [self.cert, *self.links, *self.extra, self.index]
        local = [Path(name.removeprefix("file://")) for name in named if name]
        found = [path for path in local if path.is_absolute() and path.exists()]
        # An index of relative links reaches beside itself.
        return [path.parent if path.name == "simple" else path for path in found]


def parse(text: str, environment: dict[str, str]) -> PipSettings:
    """Settings from the output of ``pip config list``.

    Later lines of that output win, as environment beats file in pip.
    """
    values: dict[str, str] = {}
    for line in text.splitlines():
        match = re.match(r"(?:global|install|download|wheel|:env:)\.([a-z-]+)=(.*)$", line)
        if match:
            try:
                value = str(ast.literal_eval(match.group(2)))
            except (ValueError, SyntaxError):
                value = match.group(2)
            if line.startswith(":env:") or match.group(1) not in values:
                values[match.group(1)] = value
    cert = values.get("cert") or next(
        (environment[name] for name in CA_NAMES if environment.get(name)), ""
    )
    return PipSettings(
        index=values.get("index-url", ""),
        extra=tuple(values.get("extra-index-url", "").split()),
        links=tuple(values.get("find-links", "").split()),
        cert=cert,
        trusted=tuple(values.get("trusted-host", "").split()),
    )


def pip_settings() -> PipSettings:
    """What pip on this host would use."""
    listed = host([sys.executable, "-m", "pip", "config", "list"]).stdout
    return parse(listed, dict(os.environ))
