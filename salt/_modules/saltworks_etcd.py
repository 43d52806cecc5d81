"""The etcd member of this machine, asked as its clients ask it."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import urlparse

import salt.utils.files
import salt.utils.yaml
from salt.exceptions import CommandExecutionError
from saltworks import etcd

__virtualname__ = "etcd_member"

CONFIG = "/etc/etcd/etcd.yml"
LOOK_SECONDS = 0.2


def __virtual__() -> str:
    return __virtualname__


def status(config: str = CONFIG) -> dict[str, Any]:
    """How the cluster stands, by what every member says; at most some seconds for each.

    :param config: etcd's own configuration file.
    :returns: see ``saltworks.etcd.health``; ``name`` is this member's.
    :raises CommandExecutionError: when this member does not answer.

    CLI Example:

    .. code-block:: bash

        salt dcs1 etcd_member.status
    """
    own = _own(config)
    store = _store(own)
    try:
        members = store.members()
    except etcd.EtcdError as error:
        raise CommandExecutionError(str(error)) from None
    statuses = {}
    for name, row in members.items():
        try:
            statuses[name] = store.status(urlparse(row["url"]).netloc)
        except etcd.EtcdError:
            continue
    names = {row["id"]: name for name, row in members.items()}
    return {"name": own["name"], **etcd.health(statuses, names)}


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


def _store(own: dict[str, Any]) -> etcd.Store:
    tls = own["client-transport-security"]
    host = urlparse(own["advertise-client-urls"]).netloc
    return etcd.Store([host], tls["cert-file"], tls["key-file"], tls["trusted-ca-file"])
