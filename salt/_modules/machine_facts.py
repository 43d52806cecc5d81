"""What a precheck has to know of a machine, in one bounded call that only reads."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import salt.version
from salt.exceptions import CommandExecutionError

__virtualname__ = "machine_facts"

__grains__: Mapping[str, Any]

#: The Python that releases of Synapse are made for.
PYTHON = "/usr/bin/python3"

#: Bound of each program that is asked, in seconds.
ASK_SECONDS = 10

#: A configuration file is not larger; what is, is not read.
MAX_CONFIG = 4 << 20

__func_alias__ = {"read_": "read"}


def __virtual__() -> str:
    return __virtualname__


def read_(
    paths: Sequence[str] = (),
    configs: Sequence[str] = (),
    ports: Sequence[int] = (),
    units: Sequence[str] = (),
    trees: Sequence[str] = (),
    programs: Sequence[str] = (),
    tree_seconds: float = 15,
) -> dict[str, Any]:
    """Describe this machine.

    :param paths: folders whose free space is asked; they need not exist.
    :param configs: files whose sha256 is asked.
    :param ports: TCP ports of which it is asked who listens on them.
    :param units: systemd units whose state is asked.
    :param trees: folders, or files, whose size is asked.
    :param programs: words of a command line; which units run such processes is asked.
    :param tree_seconds: bound for measuring all trees together.
    :returns: ``time`` (seconds since the epoch), ``salt``, ``salt_python`` (``[3, 11]``, the
        one that runs this), ``os`` (``name``, ``family``, ``release``), ``python``
        (``[3, 11]``, of :data:`PYTHON`; None without one), ``arch``, ``addresses``, ``free``
        (path to ``bytes``, ``used``, ``device`` and the existing ``parent``), ``configs`` (path
        to hex, None when it cannot be read), ``listeners`` (rows ``port``, ``address``,
        ``program``, ``unit``), ``units`` (unit to its state, such as active), ``trees`` (path to
        ``bytes`` and ``complete``), ``programs`` (word to units).
    :raises CommandExecutionError: when ``ip``, ``ss`` or ``systemctl`` do not answer.

    CLI Example:

    .. code-block:: bash

        salt legacy machine_facts.read paths='[/opt]' ports='[8008]'
    """
    deadline = time.monotonic() + tree_seconds
    answer: dict[str, Any] = {
        "salt": salt.version.__version__,
        "salt_python": list(sys.version_info[:2]),
        "os": {
            "name": __grains__.get("os", ""),
            "family": __grains__.get("os_family", ""),
            "release": __grains__.get("osrelease", ""),
        },
        "python": _python_version(),
        "arch": platform.machine(),
        "addresses": addresses(json.loads(_ask("ip", "-j", "address") or "[]")),
        "free": {path: _free(path) for path in paths},
        "configs": {path: _sha256(path) for path in configs},
        "listeners": _listening(set(ports)) if ports else [],
        "units": _unit_states(units) if units else {},
        "trees": {path: _tree(path, deadline) for path in trees},
        "programs": {word: _running(word) for word in programs},
    }
    # Last, so that the caller's bracket around the call holds it tightly.
    answer["time"] = time.time()
    return answer


def addresses(links: Iterable[Mapping[str, Any]]) -> list[str]:
    """The addresses in the answer of ``ip -j address``, loopback left out."""
    return sorted(
        str(row["local"])
        for link in links
        for row in link.get("addr_info", [])
        if "local" in row and row.get("scope") == "global"
    )


def listeners(text: str) -> list[dict[str, Any]]:
    """The rows of ``ss -Hltnp``: ``port``, ``address``, ``program`` and ``pid``.

    A socket that only the kernel holds has no program, and pid 0.
    """
    rows = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        address, _, port = fields[3].rpartition(":")
        who = re.search(r'\(\("([^"]*)",pid=(\d+)', line)
        rows.append(
            {
                "port": int(port),
                "address": address.strip("[]").partition("%")[0],
                "program": who.group(1) if who else "",
                "pid": int(who.group(2)) if who else 0,
            }
        )
    return rows


def unit_of(cgroup: str) -> str:
    """The systemd unit in the text of ``/proc/<pid>/cgroup``; empty when there is none."""
    found = re.findall(r"([^/\s]+\.(?:service|scope|socket))(?:/\S*)?$", cgroup, re.M)
    return found[0] if found else ""


def states(text: str) -> dict[str, str]:
    """The answer of ``systemctl show --property=Id,ActiveState``, unit to its state."""
    rows = {}
    for block in text.strip().split("\n\n"):
        row = dict(line.partition("=")[::2] for line in block.splitlines())
        if "Id" in row:
            rows[row["Id"]] = row.get("ActiveState", "unknown")
    return rows


def _ask(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=ASK_SECONDS, check=False
        )
    except FileNotFoundError:
        raise CommandExecutionError(
            f"{command[0]} is missing on this machine; install it (iproute2 brings ip and ss)"
        ) from None
    except subprocess.TimeoutExpired:
        raise CommandExecutionError(
            f"{' '.join(command)} did not end within {ASK_SECONDS} s; look at the machine's load"
        ) from None
    if done.returncode:
        raise CommandExecutionError(
            f"{' '.join(command)} failed: {done.stderr.strip()[-300:] or done.returncode}"
        )
    return done.stdout


def _python_version() -> list[int] | None:
    if not os.access(PYTHON, os.X_OK):
        return None
    found = re.search(r"(\d+)\.(\d+)", _ask(PYTHON, "--version"))
    return [int(found.group(1)), int(found.group(2))] if found else None


def _free(path: str) -> dict[str, Any]:
    parent = os.path.abspath(path)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    room = os.statvfs(parent)
    return {
        "bytes": room.f_bavail * room.f_frsize,
        "used": (room.f_blocks - room.f_bfree) * room.f_frsize,
        "device": os.stat(parent).st_dev,
        "parent": parent,
    }


def _sha256(path: str) -> str | None:
    try:
        with open(path, "rb") as handle:
            content = handle.read(MAX_CONFIG + 1)
    except OSError:
        return None
    return hashlib.sha256(content).hexdigest() if len(content) <= MAX_CONFIG else None


def _listening(ports: set[int]) -> list[dict[str, Any]]:
    rows = [row for row in listeners(_ask("ss", "-Hltnp")) if row["port"] in ports]
    return [
        {**{key: row[key] for key in ("port", "address", "program")}, "unit": _unit(row["pid"])}
        for row in rows
    ]


def _unit(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8") as handle:
            return unit_of(handle.read())
    except OSError:
        return ""


def _unit_states(units: Sequence[str]) -> dict[str, str]:
    # An unknown unit is answered as inactive, under the name that was asked for.
    return states(_ask("systemctl", "show", "--property=Id,ActiveState", "--", *units))


def _tree(path: str, deadline: float) -> dict[str, Any]:
    size = os.path.getsize(path) if os.path.isfile(path) else 0
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                size += os.lstat(os.path.join(folder, name)).st_size
            except OSError:
                # It went away meanwhile: the tree is in use.
                continue
        if time.monotonic() > deadline:
            return {"bytes": size, "complete": False}
    return {"bytes": size, "complete": True}


def _running(word: str) -> list[str]:
    units = set()
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as handle:
                words = handle.read().decode(errors="replace").split("\0")
        except OSError:
            continue
        if any(part.rpartition("/")[2] == word for part in words):
            units.add(_unit(int(path.split("/")[2])) or f"pid {path.split('/')[2]}")
    return sorted(units)
