"""The case files of adoption: a homeserver as found, and what must be said about it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import yaml

CASES = Path(__file__).parent / "cases"
HOME = "/home/matrix/synapse"

_SITE = """\
server {
    listen 443 ssl;
    listen 8448 ssl;
    server_name chat.lale.test;
    ssl_certificate /etc/ssl/lale/chat.lale.test.crt;
    ssl_certificate_key /etc/ssl/lale/chat.lale.test.key;
    client_max_body_size 50M;
    location ~ ^(/_matrix|/_synapse/client) {
        proxy_pass http://127.0.0.1:8008;
        proxy_set_header X-Forwarded-For $remote_addr;  # the client
    }
    location = /.well-known/matrix/server {
        default_type application/json;
        return 200 '{"m.server": "chat.lale.test:443"}';
    }
}
"""

FOUND: dict[str, Any] = {
    "minion": "legacy",
    "address": "198.18.0.10",
    "unit": "matrix-synapse.service",
    "exec_start": f"{HOME}/env/bin/python -m synapse.app.homeserver -c homeserver.yaml",
    "working_directory": HOME,
    "user": "matrix",
    "group": "matrix",
    "config_path": f"{HOME}/homeserver.yaml",
    "config_files": {
        f"{HOME}/lale.test.signing.key": f"ed25519 a_abcd {'A' * 43}\n",
        "/etc/ssl/lale/chat.lale.test.crt": "-----BEGIN CERTIFICATE-----\n",
        "/etc/ssl/lale/chat.lale.test.key": "-----BEGIN PRIVATE KEY-----\n",
    },
    "python": "3.11.2",
    "synapse_version": "1.40.0",
    "postgresql_version": 150018,
    "sqlite_version": "3.40.1",
    "nginx": {
        "/etc/nginx/nginx.conf": "http {\n    include /etc/nginx/sites-enabled/*;\n}\n",
        "/etc/nginx/sites-enabled/matrix": _SITE,
        "/etc/nginx/sites-enabled/www": (
            "server { listen 80; listen 443 ssl; server_name www.lale.test; root /var/www; }\n"
        ),
    },
    "master_address": "198.18.0.2",
    "master": {"minion": "salt", "accepted": True, "addresses": ["198.18.0.2"]},
    "installed_modules": ["matrix-synapse", "matrix-synapse-ldap3"],
}


def load(name: str) -> dict[str, Any]:
    """One case by its name."""
    case: dict[str, Any] = yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8"))
    return case


def names() -> list[str]:
    """All cases."""
    return sorted(path.stem for path in CASES.glob("*.yaml"))


def found(case: dict[str, Any]) -> dict[str, Any]:
    """What the minion of a case reports."""
    result = copy.deepcopy(FOUND)
    result.update(case.get("found", {}))
    path = case.get("homeserver_path", f"{HOME}/homeserver.yaml")
    files = {path: case["homeserver"], **result["config_files"], **case.get("files", {})}
    result["config_files"] = {name: text for name, text in files.items() if text is not None}
    if "nginx" in case:
        result["nginx"] = case["nginx"]
    return result


def at(value: Any, path: str) -> Any:
    """A value by its dotted path.

    :raises KeyError: when there is none.
    """
    for step in path.split("."):
        value = value[int(step)] if isinstance(value, list) else value[step]
    return value
