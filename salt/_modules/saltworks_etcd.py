"""The etcd member of this machine, asked as its clients ask it."""

from __future__ import annotations

import contextlib
import time
from typing import Any
from urllib.parse import urlparse

import salt.utils.files
import salt.utils.yaml
from salt.exceptions import CommandExecutionError

__virtualname__ = "etcd_member"

__salt__: dict[str, Any]

CONFIG = "/etc/etcd/etcd.yml"
LOOK_SECONDS = 0.2


def __virtual__() -> str:
    return __virtualname__


def status(config: str = CONFIG) -> dict[str, Any]:
    """How the cluster stands, by what every member says; at most some seconds for each.

    :param config: etcd's own configuration file.
    :returns: see ``etcd_keys.health``; ``name`` is this member's.
    :raises CommandExecutionError: when this member does not answer.

    CLI Example:

    .. code-block:: bash

        salt dcs1 etcd_member.status
    """
    own = _own(config)
    at = _at(own)
    members = __salt__["etcd_keys.members"](at)
    statuses = {}
    for name, row in members.items():
        one = {**at, "hosts": [urlparse(row["url"]).netloc]}
        with contextlib.suppress(CommandExecutionError):
            statuses[name] = __salt__["etcd_keys.status"](one)
    names = {row["id"]: name for name, row in members.items()}
    return {"name": own["name"], **__salt__["etcd_keys.health"](statuses, names)}


def healthy(seconds: float = 30, config: str = CONFIG) -> dict[str, Any]:
    """Wait until most members answer and have one leader.

    :param seconds: the bound.
    :param config: etcd's own configuration file.
    :returns: ``seconds`` waited, ``leader``.
    :raises CommandExecutionError: after the bound, with the last answer.
    """
    begun = time.monotonic()
    last: Any = "nothing asked"
    while True:
        try:
            last = status(config)
            if last["healthy"]:
                waited = round(time.monotonic() - begun, 3)
                return {"seconds": waited, "leader": last["leader"]}
        except CommandExecutionError as error:
            last = str(error)
        if time.monotonic() - begun >= seconds:
            raise CommandExecutionError(
                f"etcd has no leader that most members know, after {seconds:g} s (last: {last}); "
                "see journalctl -u etcd on each, and the firewall between"
            )
        time.sleep(LOOK_SECONDS)


def _own(config: str) -> dict[str, Any]:
    try:
        with salt.utils.files.fopen(config, encoding="utf-8") as file:
            loaded: dict[str, Any] = salt.utils.yaml.safe_load(file)
            return loaded
    except FileNotFoundError:
        raise CommandExecutionError(
            f"{config} is not there: apply the state etcd to this machine first"
        ) from None


def _at(own: dict[str, Any]) -> dict[str, Any]:
    """This member, for the functions of ``etcd_keys``."""
    tls = own["client-transport-security"]
    files = {"crt": tls["cert-file"], "key": tls["key-file"], "authority": tls["trusted-ca-file"]}
    return {"hosts": [urlparse(own["advertise-client-urls"]).netloc], **files}
