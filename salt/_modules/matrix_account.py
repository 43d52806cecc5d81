"""Throw-away Matrix accounts, made on the machine where Synapse runs.

The registration API is not served to the public, and its secret does not travel: it is read
from the homeserver.yaml that Synapse itself reads, passwords and tokens go back to the master
in an answer that the master's job cache forgets (``Machines.call_unrecorded``).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import yaml
from salt.exceptions import CommandExecutionError

__virtualname__ = "matrix_account"

#: Bound of each request, in seconds.
REQUEST_SECONDS = 20

PATH = "/_synapse/admin/v1/register"


def __virtual__() -> str:
    return __virtualname__


def make(url: str, config: str, localparts: Sequence[str]) -> list[dict[str, Any]]:
    """Register accounts by Synapse's shared secret, each with a password of its own.

    :param url: base URL of a listener of Synapse on this machine.
    :param config: path of the homeserver.yaml that holds ``registration_shared_secret``.
    :param localparts: names of the accounts, which must not exist yet.
    :returns: in the same order ``user_id``, ``access_token``, ``device_id``, ``password``.
    :raises CommandExecutionError: without a secret, or when Synapse refuses.
    """
    secret = _secret(config)
    return [_made(url, secret, name) for name in localparts]


def proof(secret: str, nonce: str, user: str, password: str) -> str:
    """The ``mac`` of a registration that makes no administrator (Synapse, register_api)."""
    parts = "\0".join((nonce, user, password, "notadmin"))
    return hmac.new(secret.encode(), parts.encode(), hashlib.sha1).hexdigest()


def _secret(config: str) -> str:
    try:
        with open(config, encoding="utf-8") as handle:
            loaded = yaml.safe_load(handle) or {}
        path = loaded.get("registration_shared_secret_path")
        if path:
            with open(path, encoding="utf-8") as handle:
                return handle.read().strip()
    except (OSError, yaml.YAMLError) as error:
        raise CommandExecutionError(f"{config}: cannot be read: {error}") from None
    secret = loaded.get("registration_shared_secret")
    if not secret:
        raise CommandExecutionError(
            f"{config}: there is no registration_shared_secret; add it to synapse.settings in the "
            "cluster map as {secret: registration_shared_secret} and put that secret"
        )
    return str(secret)


def _made(url: str, secret: str, name: str) -> dict[str, Any]:
    password = secrets.token_urlsafe(24)
    nonce = _asked(url + PATH)["nonce"]
    body = {
        "nonce": nonce,
        "username": name,
        "password": password,
        "admin": False,
        "mac": proof(secret, nonce, name, password),
    }
    answer = _asked(url + PATH, body)
    return {
        "user_id": answer["user_id"],
        "access_token": answer["access_token"],
        "device_id": answer.get("device_id"),
        "password": password,
    }


def _asked(url: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=REQUEST_SECONDS) as answer:
            loaded: dict[str, Any] = json.load(answer)
            return loaded
    except urllib.error.HTTPError as error:
        said = error.read(300).decode(errors="replace")
        raise CommandExecutionError(
            f"{url}: HTTP {error.code} {said}; does homeserver.yaml's secret belong to this server?"
        ) from None
    except (OSError, ValueError) as error:
        raise CommandExecutionError(
            f"{url}: {error}; does Synapse run? see journalctl -u synapse"
        ) from None
