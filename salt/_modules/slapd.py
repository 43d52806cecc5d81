"""OpenLDAP's slapd: its directory is copied to another machine, compared there, and fenced.

Configuration (cn=config) and data are carried as slapcat writes them: every attribute with
its exact value, operational ones included. One database is expected.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import time
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "slapd"

__salt__: dict[str, Any]

UNIT = "slapd"
CONFIG = "/etc/ldap/slapd.d"
DATA = "/var/lib/ldap"
PORT = 636

#: Written by the formula `directory`, and, last of all, what its unit waits for.
TLS = "/etc/ldap/saltworks"
LOADED = f"{TLS}/loaded"

#: Names of a copy's files.
CONFIG_LDIF, DATA_LDIF = "config.ldif", "data.ldif"

#: Bounds in seconds: for one answer of slapd, and for reading or loading a directory.
ASK_SECONDS, LOAD_SECONDS = 10, 600

#: An anonymous bind, and the tag of its answer (RFC 4511).
BIND, BIND_ANSWER = bytes.fromhex("300c020101600702010304008000"), 0x61

#: Attributes that change whenever somebody touches the entry, the fence included.
TOUCHED = ("olcreadonly", "entrycsn", "modifiersname", "modifytimestamp")

#: Other entries are compared, and named, up to so many.
SHOWN = 5

#: dn to lines, see ``slapd_ldif``.
Entries = dict[str, list[str]]

__func_alias__ = {"open_": "open"}


def __virtual__() -> str:
    return __virtualname__


def facts() -> dict[str, Any]:
    """What is here, without any secret; only reads.

    :returns: ``active``; ``databases`` (rows ``number``, ``backend``, ``suffix``, ``directory``,
        ``read_only``, ``replica``); ``bytes`` of the data; ``managed``: root may change
        cn=config through ldapi.
    :raises CommandExecutionError: no slapd with cn=config is here, or it cannot be read.

    CLI Example:

    .. code-block:: bash

        salt legacy slapd.facts
    """
    found = __salt__["slapd_ldif.databases"](_entries(0))
    size = 0
    for row in found:
        for path in glob.glob(f"{glob.escape(row['directory'])}/*.mdb"):
            size += os.stat(path).st_blocks * 512
    state = _call(["systemctl", "is-active", UNIT], ASK_SECONDS).stdout.strip()
    asked = [*_client("ldapsearch"), "-LLL", "-b", "cn=config", "-s", "base", "1.1"]
    return {
        "active": state == "active",
        "databases": found,
        "bytes": size,
        "managed": state == "active" and _call(asked, ASK_SECONDS).returncode == 0,
    }


def answers(host: str, authority: str, seconds: float = 4) -> float:
    """Ask the directory of another machine as Synapse will: by TLS, its certificate verified.

    :param host: its name, which the certificate must have.
    :param authority: file with the authority that must have signed it.
    :param seconds: bound of each step.
    :returns: the seconds that it took.
    :raises CommandExecutionError: it cannot be reached, its certificate is wrong, or it is mute.
    """
    begun = time.monotonic()
    place = f"ldaps://{host}:{PORT}"
    try:
        context = ssl.create_default_context(cafile=authority)
        with (
            socket.create_connection((host, PORT), seconds) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            connection.sendall(BIND)
            if BIND_ANSWER not in connection.recv(64)[:8]:
                raise CommandExecutionError(
                    f"what listens at {place} is no LDAP server; see what runs on {host}"
                )
    except ssl.SSLCertVerificationError as error:
        raise CommandExecutionError(
            f"the certificate of {place} is not to be trusted ({error.verify_message}); apply a "
            f"highstate to {host} and restart its slapd, then run the milestone again"
        ) from error
    except OSError as error:
        raise CommandExecutionError(
            f"{place} does not answer ({error}); see systemctl status {UNIT} on {host} and its "
            "firewall, then run the milestone again"
        ) from error
    return round(time.monotonic() - begun, 3)


def dump(folder: str) -> dict[str, Any]:
    """Write configuration and data into a folder that only root reads.

    :returns: ``changed``, the number of ``entries`` of the data, ``seconds``.
    :raises CommandExecutionError: slapcat failed, or there is not exactly one database.
    """
    begun = time.monotonic()
    config = _slapcat(0)
    data = _slapcat(_the_database(_parsed(config))["number"])
    os.makedirs(folder, mode=0o700, exist_ok=True)
    wrote = [
        _write(os.path.join(folder, name), text)
        for name, text in ((CONFIG_LDIF, config), (DATA_LDIF, data))
    ]
    return {
        "changed": any(wrote),
        "entries": len(_parsed(data)),
        "seconds": round(time.monotonic() - begun, 3),
    }


def fence() -> bool:
    """The directory takes no write any more; logins go on.

    :returns: False when it was so.
    :raises CommandExecutionError: slapd does not do it.
    """
    return _read_only(True)


def open_() -> bool:
    """The directory takes writes again; see :func:`fence`."""
    return _read_only(False)


def leave(folder: str) -> dict[str, Any]:
    """Fence the directory and dump it, for the machine that it moves to."""
    fence()
    return dump(folder)


def take(folder: str, source: str, host: str, key: str, whole: bool) -> dict[str, Any]:
    """Fetch a dump and make the directory here equal to it; when it is, nothing is loaded.

    Afterwards it takes writes.

    :param folder: where the dump is fetched to.
    :param source: the folder there, for messages.
    :param host: address of the machine that has it.
    :param key: path of the private key that reads it.
    :param whole: the configuration comes along; else the one here is kept.
    :returns: ``loaded``, the number of ``entries``, their ``sha256``, ``seconds``.
    :raises CommandExecutionError: it cannot be fetched or loaded, or is not equal afterwards;
        then the directory here is as it was (or, of a whole copy, does not run).
    """
    begun = time.monotonic()
    __salt__["transfer.pull"](source, folder, host, key, "root")
    config = None
    if whole:
        found = _parsed(_read(os.path.join(folder, CONFIG_LDIF)))
        config = __salt__["slapd_ldif.adapted"](found, TLS, DATA)
    data = _read(os.path.join(folder, DATA_LDIF))
    wanted = _parsed(data)
    loaded = not _is_loaded(config, wanted)
    if loaded:
        _load(config, data)
        _compare(config, wanted, folder)
    open_()
    return {
        "loaded": loaded,
        "entries": len(wanted),
        "sha256": hashlib.sha256(_text(wanted).encode()).hexdigest(),
        "seconds": round(time.monotonic() - begun, 3),
    }


def _the_database(config: Entries) -> dict[str, Any]:
    found: list[dict[str, Any]] = __salt__["slapd_ldif.databases"](config)
    if len(found) != 1:
        raise CommandExecutionError(
            f"slapd has {len(found)} databases ({', '.join(row['suffix'] for row in found)}); "
            "one is expected"
        )
    return found[0]


def _is_loaded(config: Entries | None, data: Entries) -> bool:
    if config is not None and not os.path.exists(LOADED):
        return False
    active = _call(["systemctl", "is-active", UNIT], ASK_SECONDS).returncode == 0
    return active and not _differing(config, data)


def _compare(config: Entries | None, data: Entries, folder: str) -> None:
    if different := _differing(config, data):
        raise CommandExecutionError(
            f"after loading {folder} {len(different)} entries are not equal here: "
            f"{'; '.join(different[:SHOWN])}; run the milestone again, and if it stays so compare "
            f"{folder} with slapcat"
        )


def _differing(config: Entries | None, data: Entries) -> list[str]:
    differing, here = __salt__["slapd_ldif.differing"], _entries(0)
    wrong: list[str] = differing(config, here, TOUCHED) if config is not None else []
    return [*wrong, *differing(data, _entries(_the_database(here)["number"]))]


def _load(config: Entries | None, data: str) -> None:
    if config is not None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(LOADED)
    _systemctl("stop")
    if config is not None:
        _load_config(config)
    row = _the_database(_entries(0))
    folder, aside = row["directory"], f"{row['directory']}.aside"
    _put_aside(folder, aside)
    try:
        _slapadd(CONFIG, row["number"], data, folder)
        # slapadd's quick mode leaves the writing to the kernel.
        os.sync()
    except CommandExecutionError:
        _put_back(folder, aside)
        if config is None:
            _systemctl("start")
        raise
    shutil.rmtree(aside)
    if config is not None:
        _write(LOADED, "what is loaded was compared\n")
        _systemctl("enable")
    _systemctl("start")


def _load_config(config: Entries) -> None:
    owner = os.stat(CONFIG) if os.path.isdir(CONFIG) else os.stat(DATA)
    new, old = f"{CONFIG}.new", f"{CONFIG}.old"
    for path in (new, old):
        shutil.rmtree(path, ignore_errors=True)
    os.mkdir(new, 0o750)
    os.chown(new, owner.st_uid, owner.st_gid)
    _slapadd(new, 0, _text(config), new)
    if os.path.isdir(CONFIG):
        os.rename(CONFIG, old)
    os.rename(new, CONFIG)
    shutil.rmtree(old, ignore_errors=True)


def _put_aside(folder: str, aside: str) -> None:
    # What a run that died put aside is the last that was whole; what it loaded is not.
    if os.path.isdir(aside):
        for path in glob.glob(f"{glob.escape(folder)}/*.mdb"):
            os.unlink(path)
        return
    os.mkdir(aside, 0o700)
    for path in glob.glob(f"{glob.escape(folder)}/*.mdb"):
        os.rename(path, os.path.join(aside, os.path.basename(path)))


def _put_back(folder: str, aside: str) -> None:
    for path in glob.glob(f"{glob.escape(folder)}/*.mdb"):
        os.unlink(path)
    for path in glob.glob(f"{glob.escape(aside)}/*.mdb"):
        os.rename(path, os.path.join(folder, os.path.basename(path)))
    os.rmdir(aside)


def _read_only(on: bool) -> bool:
    row = _the_database(_entries(0))
    if row["read_only"] is on:
        return False
    change = (
        f"dn: {row['dn']}\nchangetype: modify\nreplace: olcReadOnly\n"
        f"olcReadOnly: {'TRUE' if on else 'FALSE'}\n"
    )
    _run(_client("ldapmodify"), ASK_SECONDS, f"setting olcReadOnly of {row['suffix']}", change)
    return True


def _client(program: str) -> list[str]:
    return [program, "-Q", "-Y", "EXTERNAL", "-H", "ldapi:///"]


def _entries(number: int) -> Entries:
    return _parsed(_slapcat(number))


def _parsed(ldif: str) -> Entries:
    found: Entries = __salt__["slapd_ldif.entries"](ldif)
    return found


def _text(found: Entries) -> str:
    return str(__salt__["slapd_ldif.text"](found))


def _slapcat(number: int) -> str:
    if not os.path.isdir(CONFIG):
        raise CommandExecutionError(
            f"{CONFIG} is not there: no OpenLDAP that is configured by cn=config; convert it first "
            "(slaptest -f slapd.conf -F slapd.d)"
        )
    command = ["slapcat", "-F", CONFIG, "-o", "ldif_wrap=no", "-n", str(number)]
    return _run(command, LOAD_SECONDS, f"reading database {number} of slapd")


def _slapadd(config: str, number: int, ldif: str, folder: str) -> None:
    command = ["slapadd", "-q", "-F", config, "-n", str(number)]
    _run(command, LOAD_SECONDS, f"loading database {number} of slapd", ldif, os.stat(folder))


def _systemctl(verb: str) -> None:
    _run(["systemctl", verb, UNIT], 60, f"systemctl {verb} {UNIT}")


def _run(
    command: list[str],
    seconds: float,
    what: str,
    given: str | None = None,
    owner: os.stat_result | None = None,
) -> str:
    done = _call(command, seconds, given, owner)
    if done.returncode:
        raise CommandExecutionError(
            f"{what} failed: {done.stderr.strip()[-500:] or f'exit {done.returncode}'}"
        )
    return str(done.stdout)


def _call(
    command: list[str],
    seconds: float,
    given: str | None = None,
    owner: os.stat_result | None = None,
) -> Any:
    account: dict[str, Any] = {}
    if owner:
        account = {"user": owner.st_uid, "group": owner.st_gid, "extra_groups": []}
    try:
        return subprocess.run(
            command,
            input=given,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
            **account,
        )
    except FileNotFoundError:
        raise CommandExecutionError(
            f"{command[0]} is missing on this machine; apt-get install slapd ldap-utils"
        ) from None
    except subprocess.TimeoutExpired:
        raise CommandExecutionError(
            f"{command[0]} did not end within {seconds:g} s; look at the machine's load"
        ) from None


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as handle:
            return handle.read()
    except FileNotFoundError:
        raise CommandExecutionError(
            f"{path} is not there: the other machine has dumped nothing; run the milestone again"
        ) from None


def _write(path: str, content: str) -> bool:
    """Write a file, 0600 and whole; False when it holds that already."""
    with contextlib.suppress(FileNotFoundError), open(path, encoding="utf-8") as handle:
        if handle.read() == content:
            return False
    temporary = f"{path}.writing"
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(temporary, path)
    return True
