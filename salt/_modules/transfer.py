"""Copying a tree from another machine, by a key that opens nothing else (formula transfer)."""

from __future__ import annotations

import os
import re
import subprocess
import time
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "transfer"

#: Written by the formula.
KNOWN_HOSTS = "/etc/saltworks/transfer/known_hosts"

#: rsync: some files vanished while they were copied, which files of a live tree may do.
VANISHED = 24


def __virtual__() -> str:
    return __virtualname__


def pull(
    source: str,
    destination: str,
    host: str,
    key: str,
    user: str,
    timeout: float = 3600,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Make a folder here an exact copy of a tree on another machine.

    What is here already is not sent again; what is gone there goes here as well.

    :param source: the tree there, for messages; the key decides what is readable.
    :param destination: the folder here, of no other use until the move is done.
    :param host: address of the other machine.
    :param key: path of the private key.
    :param user: who owns the copy.
    :param timeout: bound in seconds.
    :param dry_run: only count what would be copied.
    :returns: ``seconds``, ``files`` copied, ``deleted``.
    :raises CommandExecutionError: when rsync fails; run it again, it goes on.

    CLI Example:

    .. code-block:: bash

        salt synapse transfer.pull /srv/a /srv/a 198.18.0.10 /etc/saltworks/transfer/a.key root
    """
    begun = time.monotonic()
    if not dry_run:
        os.makedirs(destination, exist_ok=True)
    ssh = (
        f"ssh -i {key} -o BatchMode=yes -o IdentitiesOnly=yes -o ConnectTimeout=10 "
        f"-o ServerAliveInterval=10 -o StrictHostKeyChecking=yes "
        f"-o UserKnownHostsFile={KNOWN_HOSTS}"
    )
    command = ["rsync", "--archive", "--delete", "--stats", f"--chown={user}:{user}", "-e", ssh]
    command += ["--chmod=D0750,F0640", *(["--dry-run"] if dry_run else [])]
    try:
        done = subprocess.run(
            [*command, f"root@{host}:/", f"{destination.rstrip('/')}/"],
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CommandExecutionError(
            f"copying {source} from {host} took longer than {timeout:.0f} s; "
            "run the milestone again, it goes on where it was"
        ) from None
    if done.returncode not in (0, VANISHED):
        raise CommandExecutionError(
            f"copying {source} from {host} failed (rsync exit {done.returncode}): "
            f"{done.stderr.strip()[-500:]}; run the milestone again, it goes on where it was"
        )
    return {"seconds": round(time.monotonic() - begun, 3), **counts(done.stdout)}


def counts(stats: str) -> dict[str, int]:
    """How many files rsync copied and deleted, from what ``--stats`` prints."""
    found = {}
    for name, label in (("files", "regular files transferred"), ("deleted", "deleted files")):
        row = re.search(rf"^Number of {label}: ([\d,]+)", stats, re.M)
        found[name] = int(row.group(1).replace(",", "")) if row else 0
    return found
