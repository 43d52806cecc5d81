"""The homeserver on this machine: how it was found, whether it answers, how it moves.

Reads and single acts only; what to do, and in which order, is decided on the
master (``saltworks.plan``) and written down in ``orch/``.
"""

from __future__ import annotations

import glob
import grp
import hashlib
import ipaddress
import json
import os
import pwd
import re
import socket
import sqlite3
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import yaml
from salt.exceptions import CommandExecutionError

__virtualname__ = "homeserver"

MAIN_APPS = ("synapse.app.homeserver", "synapse_homeserver")

#: Keys of homeserver.yaml that name a file which belongs to the server.
PATH_KEYS = re.compile(r"(_path|_file|_files|^log_config|_config_files)$")

#: Keys that end alike but name folders or what is made anew.
NOT_READ = ("media_store_path", "uploads_path", "pid_file", "database")

MAX_FILE = 1 << 20

__func_alias__ = {"read_": "read"}


def __virtual__() -> str:
    return __virtualname__


def read_(unit: str | None = None) -> dict[str, Any]:
    """Describe the Synapse that runs here, for ``salt-run adopt.homeserver``.

    :param unit: its systemd unit, when more than one Synapse runs here.
    :returns: the mapping ``found`` of docs/adopt.md.
    :raises CommandExecutionError: when no, or more than one, main process runs.

    CLI Example:

    .. code-block:: bash

        salt legacy homeserver.read
    """
    process = _the_main_process(unit)
    configs = _config_texts(process["configs"])
    merged = _merged(configs)
    files = dict(configs)
    files.update(_named_files(merged, process["cwd"]))
    nginx = _nginx_files()
    address, master_address = _addresses()
    for text in nginx.values():
        for path in re.findall(r"^\s*ssl_certificate(?:_key)?\s+([^;\s]+);", text, re.M):
            _read_into(files, path)
    return {
        "minion": __grains__["id"],  # type: ignore[name-defined]
        "address": address,
        "master_address": master_address,
        "unit": process["unit"],
        "exec_start": " ".join(process["cmdline"]),
        "user": process["user"],
        "group": process["group"],
        "config_path": process["configs"][0],
        "working_directory": process["cwd"],
        "config_files": files,
        "config_sha256": {path: _sha256(path) for path in configs},
        "python": _python(process["python"], "import platform; print(platform.python_version())"),
        "system_python": _python(
            "/usr/bin/python3", "import platform; print(platform.python_version())"
        ),
        "synapse_version": _python(
            process["python"], "import synapse; print(synapse.__version__)", process["cwd"]
        ),
        "sqlite_version": sqlite3.sqlite_version,
        "nginx": nginx,
        "installed_modules": json.loads(
            _python(
                process["python"],
                "import json; from importlib.metadata import distributions as d; "
                "print(json.dumps(sorted({x.metadata['Name'] for x in d()})))",
            )
        ),
    }


def healthy(url: str, timeout: float = 30) -> dict[str, Any]:
    """Wait until Synapse answers ``/health`` and its version call.

    :param url: base URL of a listener, without the final slash.
    :param timeout: bound in seconds.
    :returns: ``seconds`` waited and ``version``.
    :raises CommandExecutionError: after the bound, with the last answer.

    CLI Example:

    .. code-block:: bash

        salt synapse homeserver.healthy http://127.0.0.1:8008
    """

    def version() -> str:
        path = "/_synapse/admin/v1/server_version"
        with urllib.request.urlopen(f"{url}{path}", timeout=5) as answer:
            return str(json.load(answer)["server_version"])

    seconds, found = _answered(url, timeout, version, "synapse")
    return {"seconds": seconds, "version": found}


def serves(url: str, timeout: float = 30) -> dict[str, Any]:
    """Wait until a process of Synapse answers ``/health``, which is all that each of them has.

    :param url: base URL of a listener, without the final slash.
    :param timeout: bound in seconds.
    :returns: ``seconds`` waited.
    :raises CommandExecutionError: after the bound, with the last answer.

    CLI Example:

    .. code-block:: bash

        salt sync-1 homeserver.serves http://198.18.0.20:8101
    """
    return {"seconds": _answered(url, timeout, str, "'synapse-worker@*'")[0]}


def _answered(
    url: str, timeout: float, more: Callable[[], str], unit: str
) -> tuple[float, str]:
    """Seconds until ``/health`` and what else is asked was answered, and that answer."""
    begun = time.monotonic()
    last = "nothing tried"
    while time.monotonic() - begun < timeout:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
                answer.read()
            said = more()
            return round(time.monotonic() - begun, 3), said
        except (urllib.error.URLError, OSError, ValueError, KeyError) as error:
            last = str(error)
        time.sleep(0.05)
    raise CommandExecutionError(
        f"Synapse at {url} did not answer /health within {timeout:.0f} s (last: {last}); "
        f"see journalctl -u {unit}"
    )


def audit(services: list[str], ports: list[int]) -> dict[str, Any]:
    """What runs and listens here that should not.

    :param services: units that may run, beside the system's own.
    :param ports: TCP ports that may be listened on; loopback counts as well.
    :returns: ``services`` and ``listeners`` that are not allowed, both empty when
        this machine serves nothing else.
    """
    running = [
        row["unit"]
        for row in _json(
            "systemctl", "list-units", "--type=service", "--state=running", "-o", "json"
        )
    ]
    strange = [unit for unit in running if not _is_allowed(unit, services)]
    listening = subprocess.run(
        ["ss", "-Hltunp"], capture_output=True, text=True, timeout=20, check=True
    ).stdout
    return {"services": strange, "listeners": strange_listeners(listening, ports)}


SYSTEM_UNITS = re.compile(
    r"^(systemd-[a-z0-9-]+|dbus|dbus-broker|getty@.*|console-getty|serial-getty@.*|user@\d+|ssh|sshd"
    r"|salt-minion|cron|rsyslog|chrony|unattended-upgrades|polkit|qemu-guest-agent)\.service$"
)

#: UDP ports of the clients that get this machine its address (DHCP, DHCPv6), by program.
#: The kernel, and so ss, keeps 15 letters of a program's name.
DHCP_CLIENTS = frozenset({"dhclient", "dhcpcd", "systemd-network"})
DHCP_PORTS = frozenset({68, 546})

#: What system programs hold on loopback for this machine alone: chronyc's port, the stub
#: resolver.
ON_LOOPBACK = frozenset({("chronyd", 323), ("systemd-resolve", 53)})


def strange_listeners(text: str, ports: Collection[int]) -> list[dict[str, Any]]:
    """The rows of ``ss -Hltunp`` that are neither allowed nor a system program's own.

    :param text: the answer of ss.
    :param ports: TCP ports that may be listened on, by whomever.
    :returns: rows ``protocol``, ``address``, ``port``, ``by`` (programs, joined by commas).
    """
    rows = [_listener(line) for line in text.splitlines() if line.strip()]
    return [row for row in rows if not _may_listen(row, ports)]


def _may_listen(row: Mapping[str, Any], ports: Collection[int]) -> bool:
    if row["protocol"] == "tcp" and row["port"] in ports:
        return True
    return bool(row["by"]) and all(
        _is_the_systems(program, row) for program in row["by"].split(", ")
    )


def _is_the_systems(program: str, row: Mapping[str, Any]) -> bool:
    if program in DHCP_CLIENTS:
        return row["protocol"] == "udp" and row["port"] in DHCP_PORTS
    # An address may name its interface (127.0.0.53%lo); * is every one.
    host = row["address"].partition("%")[0].strip("[]").replace("*", "::")
    return ipaddress.ip_address(host).is_loopback and (program, row["port"]) in ON_LOOPBACK


def _is_allowed(unit: str, services: Iterable[str]) -> bool:
    return bool(SYSTEM_UNITS.match(unit)) or unit.removesuffix(".service") in services


def _listener(line: str) -> dict[str, Any]:
    fields = line.split()
    host, _, port = fields[4].rpartition(":")
    programs = re.findall(r'\("([^"]+)",pid=', line)
    return {
        "protocol": fields[0],
        "address": host,
        "port": int(port),
        "by": ", ".join(dict.fromkeys(programs)),
    }


def _json(*command: str) -> list[dict[str, Any]]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    rows: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return rows


def _the_main_process(unit: str | None) -> dict[str, Any]:
    found = [row for row in _main_processes() if unit in (None, row["unit"])]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CommandExecutionError(
            f"no running Synapse main process{f' in {unit}' if unit else ''} on this machine; "
            "start it, or name the right minion"
        )
    units = ", ".join(row["unit"] or f"pid {row['pid']}" for row in found)
    raise CommandExecutionError(
        f"{len(found)} Synapse main processes run here ({units}); say unit=<one>"
    )


def _main_processes() -> list[dict[str, Any]]:
    rows = []
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as handle:
                cmdline = [
                    part.decode(errors="replace") for part in handle.read().split(b"\0") if part
                ]
        except OSError:
            continue
        if not any(part.rpartition("/")[2] in MAIN_APPS for part in cmdline):
            continue
        if "python" not in os.path.basename(cmdline[0]):
            continue
        pid = int(path.split("/")[2])
        cwd = os.readlink(f"/proc/{pid}/cwd")
        status = os.stat(f"/proc/{pid}")
        rows.append(
            {
                "pid": pid,
                "cmdline": cmdline,
                "python": cmdline[0],
                "cwd": cwd,
                "configs": _config_arguments(cmdline, cwd),
                "user": pwd.getpwuid(status.st_uid).pw_name,
                "group": grp.getgrgid(status.st_gid).gr_name,
                "unit": _unit_of(pid),
            }
        )
    return [row for row in rows if row["configs"]]


def _config_arguments(cmdline: list[str], cwd: str) -> list[str]:
    paths = []
    for index, part in enumerate(cmdline):
        if part in ("-c", "--config-path") and index + 1 < len(cmdline):
            paths.append(cmdline[index + 1])
        elif part.startswith("--config-path="):
            paths.append(part.partition("=")[2])
    return [os.path.normpath(os.path.join(cwd, path)) for path in paths]


def _unit_of(pid: int) -> str:
    with open(f"/proc/{pid}/cgroup", encoding="utf-8") as handle:
        units = re.findall(r"([A-Za-z0-9@._\\-]+\.service)\s*$", handle.read(), re.M)
    return units[0] if units else ""


def _config_texts(paths: list[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in paths:
        names = sorted(glob.glob(f"{path}/*.yaml")) if os.path.isdir(path) else [path]
        for name in names:
            _read_into(texts, name)
    return texts


def _merged(texts: dict[str, str]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for text in texts.values():
        try:
            loaded = yaml.safe_load(text)
        except yaml.YAMLError:
            continue
        if isinstance(loaded, dict):
            merged.update(loaded)
    return merged


def _named_files(config: Any, cwd: str) -> dict[str, str]:
    files: dict[str, str] = {}

    def walk(key: str, value: Any) -> None:
        if isinstance(value, dict):
            for name, item in value.items():
                walk(str(name), item)
        elif isinstance(value, list):
            for item in value:
                walk(key, item)
        elif isinstance(value, str) and PATH_KEYS.search(key) and key not in NOT_READ:
            _read_into(files, os.path.normpath(os.path.join(cwd, value)))

    walk("", config)
    return files


def _read_into(files: dict[str, str], path: str) -> None:
    if os.path.isfile(path) and os.path.getsize(path) <= MAX_FILE:
        with open(path, encoding="utf-8", errors="replace") as handle:
            files[path] = handle.read()


def _sha256(path: str) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _nginx_files() -> dict[str, str]:
    done = (
        subprocess.run(["nginx", "-T"], capture_output=True, text=True, timeout=20, check=False)
        if any(os.access(f"{d}/nginx", os.X_OK) for d in ("/usr/sbin", "/usr/bin"))
        else None
    )
    if done is None or done.returncode:
        return {}
    parts = re.split(r"^# configuration file ([^:\n]+):$", done.stdout, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _python(python: str, program: str, cwd: str | None = None) -> str:
    done = subprocess.run(
        [python, "-c", program], capture_output=True, text=True, timeout=60, check=False, cwd=cwd
    )
    if done.returncode:
        raise CommandExecutionError(f"{python} failed: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()


def _addresses() -> tuple[str, str]:
    """This machine's address as its master sees it, and its master's as it sees that."""
    master = __opts__.get("master_ip") or __opts__["master"]  # type: ignore[name-defined]
    family = socket.AF_INET6 if ":" in str(master) else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        # No packet is sent: the kernel only chooses the source address.
        probe.connect((str(master), 4506))
        return str(probe.getsockname()[0]), str(probe.getpeername()[0])
