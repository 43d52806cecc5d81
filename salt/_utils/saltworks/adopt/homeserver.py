"""Judging a hand-made homeserver: what becomes of each key, and what must not go on."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

from .. import plan, releases
from . import database, listeners, modules, nginx, outside, stated
from .model import Adoption
from .reading import read
from .rules import RULES
from .sections import ordinary, put
from .work import Work, available, version

#: What the new release is built with when nobody says otherwise.
AVAILABLE = ("ldap_auth_provider",)

#: Importing these modules registers their rules.
RULE_BOOKS = (database, listeners, modules, outside)

BACKUP_DIRECTORY = "/var/backups/saltworks"

_SERVER_NAME = re.compile(
    r"^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?)(:\d{1,5})?$"
)
_SIGNING_KEY = re.compile(r"^ed25519\s+\S+\s+[A-Za-z0-9+/]{43}=?$")


def judge(
    found: Mapping[str, Any],
    target: str = "1.163.2",
    *,
    accepted: Collection[str] = (),
    available_modules: Collection[str] = AVAILABLE,
    carries_files: bool = False,
) -> Adoption:
    """Decide what becomes of a hand-made Synapse.

    :param found: what the minion read; docs/adopt.md has its shape.
    :param target: the release to come.
    :param accepted: keys whose loss the operator agrees to; a section's name covers
        the keys in it.
    :param available_modules: distributions or modules that the new release has beside
        Synapse itself (:func:`saltworks.adopt.requirements` reads them from a file).
    :param carries_files: whether whoever uses the map installs ``synapse.files``
        (a secret's reference by path below the configuration folder). Without it a key
        that names a file cannot be carried.
    :returns: verdicts on every key, a cluster map, the secrets it refers to, and every
        problem at once. Nothing is raised for what the operator wrote.
    """
    reading = read(found)
    work = Work(
        found=found,
        reading=reading,
        target=target,
        old=version(found.get("synapse_version")),
        accepted=frozenset(accepted),
        available=available(available_modules),
        carries_files=carries_files,
        problems=list(reading.problems),
        warnings=list(reading.warnings),
    )
    if not work.values:
        return _outcome(work, {})
    if work.values.get("worker_app") not in (None, "synapse.app.homeserver"):
        work.say(("worker_app",), "replaced", "see the problem")
        work.refuse(
            ("worker_app",), f"this is the file of a worker ({work.values['worker_app']})",
            "adopt the unit of the main process, synapse.app.homeserver",
        )
        return _outcome(work, {})
    _verdicts(work)
    stated.state(work)
    listeners.state_federation(work)
    _identity(work)
    _platform(work)
    return _outcome(work, _cluster_map(work))


def _verdicts(work: Work) -> None:
    for key, value in list(work.values.items()):
        if key == "worker_app":
            work.say((key,), "dropped-no-effect", "it names the main process")
        else:
            RULES.get(key, ordinary)(work, key, value)
    if not work.values.get("macaroon_secret_key") and "macaroon_secret_key" not in work.settings:
        _derived_macaroon(work)


def _derived_macaroon(work: Work) -> None:
    if work.values.get("registration_shared_secret") and (
        "macaroon_secret_key" not in work.values
    ):
        shared = work.settings.get("registration_shared_secret")
        if shared is not None:
            put(work, ("macaroon_secret_key",), shared)
        work.say(
            "macaroon_secret_key", "replaced",
            "there is none: both releases take registration_shared_secret for it; that is now "
            "written down, so that changing the one does not change the other", stated=True,
        )
    elif "macaroon_secret_key" not in work.values:
        work.say(
            "macaroon_secret_key", "replaced",
            "there is none: both releases derive it from the signing key, which is carried; so it "
            "stays absent", stated=True, todo="never add registration_shared_secret without it",
        )


def _identity(work: Work) -> None:
    name = work.values.get("server_name")
    if not name:
        work.refuse(
            work.reading.files[-1], "server_name is missing, without which nothing starts",
            "write the name that user ids end with",
        )
    elif not isinstance(name, str) or not _SERVER_NAME.match(name):
        work.refuse(
            ("server_name",), f"{name!r} is no server name", "write a DNS name, perhaps with a port"
        )
    elif name != name.lower():
        work.warn(
            ("server_name",), f"{name} has capital letters, which some servers do not accept",
            "nothing: it can never change",
        )
    _signing_key(work)


def _signing_key(work: Work) -> None:
    inline = work.values.get("signing_key")
    path = work.values.get("signing_key_path")
    place = ("signing_key",) if inline else ("signing_key_path",)
    if inline:
        text: str | None = str(inline)
    else:
        name = f"{work.values.get('server_name')}.signing.key"
        path = str(path or f"{work.reading.config_dir}/{name}")
        text = work.file(path)
    if text is None:
        work.refuse(
            place, f"the signing key {path} could not be read; without it other servers and old "
            "events no longer trust this one",
            "make the file exist and readable for root, then adopt again",
        )
        return
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or not all(_SIGNING_KEY.match(line) for line in lines):
        work.refuse(
            place, "the signing key is not of the form 'ed25519 <id> <43 characters>'",
            "restore the file from a backup; never make a new one",
        )
        return
    if len(lines) > 1:
        work.warn(place, f"{len(lines)} signing keys; all are kept, the first one signs", "nothing")
    work.secret("signing_key", "\n".join(lines))


def _platform(work: Work) -> None:
    python = work.found.get("system_python") or work.found.get("python")
    if version(python) and version(python) < releases.PYTHON_MINIMUM:
        wanted = releases.dotted(releases.PYTHON_MINIMUM)
        work.refuse(
            "Python",
            f"it is {python}; {work.target} wants {wanted} or newer",
            "upgrade the operating system first (Debian 12 or newer)",
        )
    if work.old and work.old >= version(work.target):
        work.refuse(
            "Synapse", f"{work.found.get('synapse_version')} runs, {work.target} is not newer",
            "choose a newer releases.synapse",
        )
    elif work.old[:2] != (1, 40):
        work.warn(
            "Synapse", f"{work.found.get('synapse_version') or 'its version'} is not 1.40, with "
            "which this was tried", "read the verdicts with more care, and rehearse M1",
        )
    if not work.found.get("unit"):
        work.refuse(
            "Synapse", "it does not run as a systemd service, so it cannot be stopped and started",
            "write a unit for it and start it so, then adopt again",
        )


def _cluster_map(work: Work) -> dict[str, Any]:
    found, values = work.found, work.values
    at = listeners.chosen(work)
    data = database.place(work)
    site = nginx.adopt(work, _client_ports(work))
    name = str(values.get("server_name") or "")
    public: dict[str, Any] = {"name": site.name or _public_name(work), "ports": site.ports or [443]}
    if site.client_max_body_size:
        public["client_max_body_size"] = site.client_max_body_size
    if site.well_known:
        public["well_known"] = site.well_known
    media = str(values.get("media_store_path") or "media_store")
    legacy: dict[str, Any] = {
        "minion": str(found["minion"]),
        "unit": str(found.get("unit") or ""),
        "user": str(found.get("user") or ""),
        "group": str(found.get("group") or ""),
        "config_path": str(found["config_path"]),
        "media_store_path": work.reading.absolute(media),
        "nginx_sites": site.files,
    }
    if at:
        legacy["listener"] = {"address": at[0], "port": at[1]}
    hashes = found.get("config_sha256") or {}
    legacy["config_sha256"] = {path: hashes[path] for path in work.reading.files if path in hashes}
    if work.accepted:
        legacy["accepted_losses"] = sorted(work.accepted)
    synapse: dict[str, Any] = {"settings": work.settings}
    if data:
        legacy["database"] = {key: row for key, row in data.items() if key != "args"}
        synapse["database"] = data
    if work.modules:
        synapse["modules"] = work.modules
    loopback = _loopback(work)
    if loopback:
        synapse["loopback"] = loopback
    if work.files:
        synapse["files"] = dict(sorted(work.files.items()))
    return {
        "name": re.sub(r"[^a-z0-9.-]", "-", name.lower().rsplit(":", 1)[0]).strip("-.") or "matrix",
        "server_name": name,
        "public": public,
        "releases": {"synapse": work.target},
        "machines": {
            **_master(work),
            str(found["minion"]): {"role": "legacy", "address": str(found.get("address") or "")},
        },
        "legacy": legacy,
        "synapse": synapse,
        "build": {},
        "backup": {"directory": BACKUP_DIRECTORY},
    }


def _master(work: Work) -> dict[str, dict[str, str]]:
    """The master's own machine, on which releases are built.

    Its address is the one by which the adopted machine reaches it: its own minion may well
    name ``localhost`` as its master.
    """
    master = work.found.get("master") or {}
    name, address = str(master.get("minion") or ""), str(work.found.get("master_address") or "")
    place = f"master {name}".strip()
    if not master.get("accepted"):
        work.refuse(
            place, "no minion of the master's id is accepted, and releases are built on the master",
            f"start a salt-minion on the master (id: {name or 'as the master'}), run "
            f"salt-key -a {name or '<id>'}, then adopt again",
        )
    elif name == str(work.found["minion"]):
        work.refuse(
            place, "the master runs on the machine of the server that is adopted",
            "give the master a machine of its own",
        )
    elif address not in (master.get("addresses") or []):
        have = ", ".join(map(str, master.get("addresses") or [])) or "none"
        work.refuse(
            place, f"{work.found['minion']} reaches its master by {address or 'no address'}, which "
            f"the machine with the minion {name} does not have (it has: {have})",
            "let the minion of that id run on the master itself, and minions name one of its "
            "addresses as their master",
        )
    else:
        return {name: {"role": "master", "address": address}}
    return {}


def _client_ports(work: Work) -> set[int]:
    return {row[1] for row in listeners.http_listeners(work)}


def _public_name(work: Work) -> str:
    base = work.values.get("public_baseurl")
    try:
        host = urlsplit(base).hostname if isinstance(base, str) else None
    except ValueError:
        host = None
    return host or str(work.values.get("server_name") or "").split(":")[0]


def _loopback(work: Work) -> list[dict[str, Any]]:
    rows = []
    for row in work.loopback:
        port = row["port"] or _sibling_port(work, row["path"])
        if not isinstance(port, int):
            work.warn(
                row["path"], f"it names {row['host']} without a port, so M2 cannot relay it",
                f"write the port beside it, as {plan.port_key(row['path'].rpartition('.')[2])}",
            )
            continue
        entry = {"path": row["path"], "host": row["host"], "port": port}
        if entry not in rows:
            rows.append(entry)
    return rows


def _sibling_port(work: Work, path: str) -> Any:
    node: Any = {**work.settings, "modules": work.modules}
    *steps, last = path.split(".")
    for step in steps:
        node = node[int(step)] if isinstance(node, list) else node.get(step, {})
    port = node.get(plan.port_key(last)) if isinstance(node, dict) else None
    return int(port) if isinstance(port, str) and port.isdecimal() else port


def _outcome(work: Work, cluster_map: dict[str, Any]) -> Adoption:
    return Adoption(
        verdicts=list(work.verdicts.values()),
        cluster_map=cluster_map,
        secrets=work.secrets,
        problems=sorted(set(work.problems)),
        warnings=sorted(set(work.warnings)),
    )
