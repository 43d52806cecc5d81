"""Carrying a value: secrets put away, files taken along, loopback addresses noted."""

from __future__ import annotations

import posixpath
import re
from typing import Any
from urllib.parse import urlsplit

from .model import dotted
from .reading import Path
from .work import Work

#: Where the synapse formula keeps its configuration.
CONFIG_DIR = "/etc/synapse"

SECRET_KEY = re.compile(
    r"(secret|secret_key|passw(or)?d|passphrase|pepper|token|api_?key|access_key|customer_key"
    r"|private_key|credentials?|dsn|(^|_)pass)$",
    re.IGNORECASE,
)
_CREDENTIALS = re.compile(r"^[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)
_PATH_KEY = re.compile(r"(_path|_file|_dir|_directory|^directory|_file_name)$")
_NO_PATH = re.compile(r"_html_path$|^backup_media_store_path$")

LOOPBACK = re.compile(r"^(localhost|127\.\d+\.\d+\.\d+|::1|ip6-localhost)$", re.IGNORECASE)
PORTS = {"ldap": 389, "ldaps": 636, "http": 80, "https": 443, "redis": 6379, "smtp": 25}

_NAMES = {
    "password_config.pepper": "pepper",
    "email.smtp_pass": "smtp_pass",
    "jwt_config.secret": "jwt_secret",
}


class Lost(Exception):
    """A part of a value that cannot be carried.

    :param what: the reason.
    :param todo: what the operator can do about it.
    """

    def __init__(self, path: Path, what: str, todo: str) -> None:
        super().__init__(what)
        self.path, self.what, self.todo = path, what, todo


def carry(work: Work, source: Path, target: Path, value: Any) -> Any:
    """A deep copy that may leave the old machine.

    :param source: path in the old file, for names and messages.
    :param target: path in the new configuration, for the list of loopback addresses.
    :raises Lost: when it names a file that was not read.
    """
    if isinstance(value, dict):
        return {
            key: carry(work, (*source, str(key)), (*target, str(key)), item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [
            carry(work, (*source, index), (*target, index), item)
            for index, item in enumerate(value)
        ]
    if not isinstance(value, str):
        return value
    key = _key(source)
    if is_secret(source, value):
        return work.secret(secret_name(work, source), value)
    if _names_a_file(work, key, value):
        return carry_path(work, source, value)
    _note_loopback(work, target, key, value)
    return value


def carried(work: Work, path: tuple[str | int, ...], value: Any) -> Any:
    """Carry a value whose target is its own path, or give a verdict and None when it is lost."""
    try:
        return carry(work, path, path, value)
    except Lost as lost:
        work.say(path, "cannot-carry", lost.what, todo=lost.todo)
        return None


def is_secret(path: Path, value: Any) -> bool:
    """Whether a text is one that nobody else may read."""
    if not isinstance(value, str) or not value:
        return False
    key = _key(path)
    if path[:1] == ("old_signing_keys",) or path[:1] == ("trusted_key_servers",):
        return False
    inside_jwt_key = len(path) > 1 and path[-2] == "client_secret_jwt_key" and key == "key"
    return inside_jwt_key or bool(SECRET_KEY.search(key)) or bool(_CREDENTIALS.match(value))


def secret_name(work: Work, path: Path) -> str:
    """A name for a secret that says whose it is."""
    text = dotted(path)
    if text in _NAMES:
        return _NAMES[text]
    steps = [str(step) for step in path if step != "config"]
    for depth in range(len(path) - 1, 0, -1):
        owner = _at(work.values, path[:depth])
        if isinstance(owner, dict):
            name = owner.get("module") or owner.get("idp_id")
            if isinstance(name, str):
                rest = [str(step) for step in path[depth:] if step != "config"]
                return "_".join([name.split(".")[0], *rest])
    return "_".join(steps)


def carry_path(work: Work, source: Path, value: str) -> str:
    """Take a file, or the files of a folder, along and return its new place.

    :raises Lost: when nothing was read there.
    """
    key = _key(source)
    inside = work.files_in(value)
    text = work.file(value)
    if text is None and not inside:
        raise Lost(
            source,
            f"it names {value!r} on the old machine, which is not among the files read",
            "make it readable, or move what it holds into the configuration",
        )
    if not work.carries_files:
        raise Lost(
            source,
            f"it names {value!r} on the old machine, and our formula installs no such file",
            "move what it holds into the configuration",
        )
    folder = _folder(key)
    if text is not None:
        return f"{CONFIG_DIR}/{_store(work, folder, posixpath.basename(value), text)}"
    for name, content in sorted(inside.items()):
        _store(work, folder, name, content)
    return f"{CONFIG_DIR}/{folder}"


def _store(work: Work, folder: str, name: str, text: str) -> str:
    place, number = f"{folder}/{name}", 2
    reference = work.secret(f"file_{folder}_{name}", text)
    while work.files.get(place, reference) != reference:
        place, number = f"{folder}/{number}-{name}", number + 1
    work.files[place] = reference
    return place


def _folder(key: str) -> str:
    if "template" in key:
        return "templates"
    return "appservices" if key == "app_service_config_files" else "files"


def _names_a_file(work: Work, key: str, value: str) -> bool:
    if _NO_PATH.search(key) or "://" in value:
        return False
    if value.startswith("/") and work.file(value) is not None:
        return True
    return bool(_PATH_KEY.search(key)) and ("/" in value or "." in value)


def _note_loopback(work: Work, target: Path, key: str, value: str) -> None:
    if target[:1] in (("public_baseurl",), ("listeners",)) or key.startswith("bind"):
        return
    host, port = value, None
    if "://" in value:
        try:
            parts = urlsplit(value)
            host, port = parts.hostname or "", parts.port or PORTS.get(parts.scheme)
        except ValueError:
            return
    elif key not in ("host", "hostname", "server"):
        return
    if LOOPBACK.match(host):
        work.loopback.append({"path": ".".join(map(str, target)), "host": host, "port": port})


def _key(path: Path) -> str:
    return str(next((step for step in reversed(path) if isinstance(step, str)), ""))


def _at(value: Any, path: Path) -> Any:
    for step in path:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return None
    return value
