"""A rendered nginx formula on disk, below a folder, as a real nginx can load it unprivileged."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from tests.render import trees

#: Places that belong to the machine; all are moved below the folder.
MOVED = ("/etc/nginx", "/var/log/nginx", "/run/")


def make_certificate(folder: Path) -> tuple[str, str]:
    """A certificate for chat.example.org and its key, as PEM."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-days", "2", "-subj", "/CN=chat.example.org",
         "-keyout", "key.pem", "-out", "crt.pem"],
        cwd=folder, check=True, capture_output=True, timeout=60,
    )
    return (folder / "crt.pem").read_text("utf-8"), (folder / "key.pem").read_text("utf-8")


class Server:
    """A case's files below a folder, and nginx's word on them.

    :param main: directives for nginx's main block, where the case has no nginx.conf.
    """

    def __init__(
        self, folder: Path, binary: Path, renderer: trees.Renderer, case: trees.Case,
        certificate: tuple[str, str], main: str = "",
    ) -> None:
        self.folder, self.binary = folder, binary
        for path in ("var/log/nginx", "run", "etc/nginx/modules-enabled", "etc/nginx/conf.d",
                     "etc/nginx/sites-enabled", "etc/nginx/saltworks"):
            (folder / path).mkdir(parents=True, exist_ok=True)
        self.write("/etc/nginx/mime.types", "types { text/html html; }\n")
        self.write(
            "/etc/nginx/nginx.conf",
            f"{main} pid /run/nginx.pid; error_log /var/log/nginx/error.log; events {{}}\n"
            "http { access_log off; include /etc/nginx/sites-enabled/*; }\n",
        )
        for chunk in renderer.compile(case):
            if chunk["state"] != "file" or not str(chunk["name"]).startswith("/etc/nginx"):
                continue
            if chunk["fun"] == "symlink":
                (folder / chunk["name"][1:]).symlink_to(folder / chunk["target"][1:])
            elif chunk["fun"] == "managed":
                self.write(chunk["name"], self._content(renderer, case, chunk, certificate))
        self.aim(case.pillar["nginx"]["door"]["target"])

    def _content(
        self, renderer: trees.Renderer, case: trees.Case, chunk: dict[str, Any],
        certificate: tuple[str, str],
    ) -> str:
        if chunk.get("contents_pillar"):
            return certificate[0 if chunk["contents_pillar"].endswith("crt") else 1]
        if "contents" in chunk:
            return str(chunk["contents"])
        return renderer.template(case, chunk["source"], chunk.get("context", {}))

    def write(self, path: str, text: str) -> None:
        """Write one file with its paths moved below the folder and high ports."""
        text = self.moved(text)
        text = re.sub(
            r"listen (\[::\]:)?(\d+)(?=[ ;])",
            lambda m: f"listen {m[1] or ''}{int(m[2]) + 20000}",
            text,
        )
        target = self.folder / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")

    def moved(self, text: str) -> str:
        """The text with every place of the machine moved below the folder."""
        for place in MOVED:
            text = re.sub(rf"(?<![\w.]){place}", f"{self.folder}{place}", text)
        return text

    def aim(self, target: str) -> None:
        """Point the door to a target."""
        link = self.folder / "etc/nginx/saltworks/door.conf"
        link.unlink(missing_ok=True)
        link.symlink_to(self.folder / f"etc/nginx/saltworks/door/{target}.conf")

    def test(self) -> subprocess.CompletedProcess[str]:
        """``nginx -T``."""
        return subprocess.run(
            [str(self.binary), "-T", "-q", "-p", str(self.folder),
             "-c", str(self.folder / "etc/nginx/nginx.conf")],
            capture_output=True, text=True, timeout=30, check=False,
        )
