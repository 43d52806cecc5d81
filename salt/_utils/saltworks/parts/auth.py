"""M3, part auth: the password auth backend on a machine of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..clustermap import Map, address, the_machine
from ..errors import Problem, Refused
from ..meeting import Check
from ..modules import BOUNDED_LDAP, directories, left_on_loopback
from ..plan import AUTHORITY, AUTHORITY_FILE, TRANSFER_DIR, Placement, Secrets, worker_sources
from .model import Ask, Steps, errors

NAME = "auth"
ROLE = "directory"
MILESTONE = "m3.auth"
AFTER = ("m2",)
COPIES_ON = "directory"
COPIES_BACK_ON = "legacy"
CONCERNS = ("legacy", "proxy", "synapse")
SECRETS: Mapping[str, int] = {}
KEY_PAIRS = ("transfer_directory", "transfer_directory-back")

#: LDAP over TLS.
PORT = 636

#: Where the directory is dumped for the way there, and for the way back; on both machines.
FOLDER, FOLDER_BACK = "/var/lib/saltworks/directory", "/var/lib/saltworks/directory-back"

#: ssl.CERT_REQUIRED, as the module's configuration can say it.
CERT_REQUIRED = 2

MIB = 1 << 20


def idle(cmap: Map) -> str:
    """See :class:`saltworks.parts.Part`."""
    if directories(cmap):
        return ""
    stays = left_on_loopback(cmap)
    if not stays:
        return "no module of synapse.modules asks an LDAP server on the legacy machine"
    shown = ", ".join(f"{row['path']} ({row['host']}:{row['port']})" for row in stays)
    return (
        "no module of synapse.modules asks an LDAP server on the legacy machine. What these still "
        f"ask there is yours to move: {shown}. Then write its new address into synapse.modules, "
        "and take its row out of synapse.loopback"
    )


def configure(config: dict[str, Any], cmap: Map, placement: Placement) -> None:
    """See :class:`saltworks.parts.Part`."""
    for found in directories(cmap):
        row = config["modules"][found.index]
        row["module"] = BOUNDED_LDAP
        kept = {key: value for key, value in row["config"].items() if key != "validate_cert"}
        row["config"] = {
            **kept,
            "uri": f"ldaps://{placement.auth}:{PORT}",
            "start_tls": False,
            "tls_options": {"validate": CERT_REQUIRED, "ca_certs_file": AUTHORITY_FILE},
        }


def machine(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if idle(cmap) or not _is_keyed(secret, minion):
        return {"states": ["base"]}
    synapse = the_machine(cmap, "synapse")
    clients = [address(cmap, synapse)] if synapse else []
    clients += worker_sources(cmap, placement)
    slices: dict[str, Any] = {
        # The firewall first: from its first moment slapd listens to nobody else.
        "states": ["base", "firewall", "directory"],
        "firewall": {"ports": {PORT: [*clients, *cmap.get("directory", {}).get("clients", [])]}},
        "directory": {
            "address": address(cmap, minion),
            "name": minion,
            "certificate": {"crt": secret(f"pki_{minion}"), "key": secret(f"pki_{minion}_key")},
            "authority": secret("pki_authority"),
            "serving": bool(placement.auth),
            "folder": FOLDER,
            "fetch": _fetched_by(cmap, minion),
        },
    }
    if NAME in placement.given_up:
        slices["states"] += ["transfer.absent", "directory.forgotten"]
        return slices
    slices["states"].append("transfer")
    legacy_address = address(cmap, cmap["legacy"]["minion"])
    slices["transfer"] = {
        "from": legacy_address,
        "pulls": _pull("directory", FOLDER, secret),
        "offers": _offer("directory-back", FOLDER_BACK, legacy_address, secret),
    }
    return slices


def legacy(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    there = the_machine(cmap, ROLE)
    if there is None or idle(cmap) or not _is_keyed(secret, there):
        return {}
    slices: dict[str, Any] = {"states": [], "directory": {"folder": FOLDER}}
    if NAME in placement.given_up:
        return {**slices, "states": ["directory.retired"]}
    if not placement.auth and NAME not in placement.upcoming:
        # Taken back: passwords do not lie about for nothing.
        return {**slices, "states": ["directory.forgotten"]}
    if not placement.moving:
        # While it moves, the window says whether it takes writes.
        slices["states"] = ["directory.fenced" if placement.auth else "directory.offered"]
    slices["transfer"] = {
        "from": address(cmap, there),
        "pulls": _pull("directory-back", FOLDER_BACK, secret),
        "offers": _offer("directory", FOLDER, address(cmap, there), secret),
    }
    return slices


def synapse(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    if placement.auth or NAME in placement.upcoming:
        return {"certificates": {AUTHORITY: secret("pki_authority")}}
    return {}


def relays(cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def hold(cmap: Map) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    return Steps()


def steps(cmap: Map, placement: Placement) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    there = the_machine(cmap, ROLE)
    assert there is not None
    found = cmap["legacy"]["minion"]
    if placement.auth:
        fetched = {
            "folder": FOLDER_BACK,
            "source": FOLDER_BACK,
            "host": address(cmap, there),
            "key": f"{TRANSFER_DIR}/directory-back.key",
            "whole": False,
        }
        return Steps(
            act=(
                Ask(there, "slapd.leave", {"folder": FOLDER_BACK}),
                Ask(found, "slapd.take", fetched),
            ),
            undo=(Ask(there, "slapd.open"),),
        )
    fetched = {**_fetched_by(cmap, there), "folder": FOLDER, "whole": True}
    return Steps(
        before=(_answers(placement, there),),
        act=(
            Ask(found, "slapd.leave", {"folder": FOLDER}),
            Ask(there, "slapd.take", fetched),
        ),
        undo=(Ask(found, "slapd.open"),),
    )


def no_return(cmap: Map, placement: Placement) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    return []


def questions(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    there = the_machine(cmap, ROLE)
    if there is None or idle(cmap):
        return {}
    ports = sorted({found.port for found in directories(cmap)})
    return {
        "slapd": Ask(cmap["legacy"]["minion"], "slapd.facts"),
        "listeners": Ask(cmap["legacy"]["minion"], "machine_facts.read", {"ports": ports}),
        "machine": Ask(there, "machine_facts.read", {"ports": [PORT], "paths": ["/var/lib/ldap"]}),
    }


def problems(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    there = the_machine(cmap, ROLE)
    assert there is not None
    if reason := idle(cmap):
        place = f"cluster.machines.{there}"
        what = f"has the role {ROLE}, and there is nothing to move: {reason}"
        return [Problem(place, what, "take it out of the map")]
    found = _asked_of_one(cmap)
    slapd, listeners, machine = (told.get(key) for key in ("slapd", "listeners", "machine"))
    legacy = cmap["legacy"]["minion"]
    if slapd is not None:
        found += _of_found(legacy, slapd)
    if listeners is not None and "error" not in listeners:
        found += _of_port(cmap, listeners["listeners"])
    if machine is not None and "error" not in machine:
        found += _of_machine(there, machine, slapd or {})
    return found


def proofs(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    if not placement.auth:
        return {}
    return {
        "new": Ask(placement.auth, "slapd.facts"),
        "found": Ask(cmap["legacy"]["minion"], "slapd.facts"),
        "tls": _answers(placement, placement.auth),
    }


def checks(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Check]:
    """See :class:`saltworks.parts.Part`."""
    if not told:
        return []
    if wrong := errors(told):
        return [Check("directory", False, "; ".join(wrong))]
    new, found = told["new"], told["found"]
    legacy, suffix = cmap["legacy"]["minion"], new["databases"][0]["suffix"]
    if new["databases"][0]["read_only"]:
        wrong.append(f"{suffix} on {placement.auth} is read-only")
    if NAME in placement.given_up:
        if found["active"]:
            wrong.append(f"slapd runs on {legacy} still")
    elif not found["databases"][0]["read_only"]:
        wrong.append(f"{suffix} on {legacy} takes writes still, which would be lost")
    seen = f"{suffix} is served by {placement.auth}, its certificate verifies on Synapse's machine"
    return [Check("directory", not wrong, "; ".join(wrong) or seen)]


def _is_keyed(secret: Secrets, there: str) -> bool:
    """Whether the milestone has made what the part's machines need; else they get nothing yet."""
    try:
        for name in (f"pki_{there}_key", *(f"{pair}_public" for pair in KEY_PAIRS)):
            secret(name)
    except Refused:
        return False
    return True


def _fetched_by(cmap: Map, there: str) -> dict[str, str]:
    return {
        "source": FOLDER,
        "host": address(cmap, cmap["legacy"]["minion"]),
        "key": f"{TRANSFER_DIR}/directory.key",
    }


def _pull(name: str, folder: str, secret: Secrets) -> dict[str, Any]:
    row = {"source": folder, "destination": folder, "user": "root"}
    return {name: {**row, "key": secret(f"transfer_{name}_private")}}


def _offer(name: str, folder: str, to: str, secret: Secrets) -> dict[str, Any]:
    key = secret(f"transfer_{name}_public")
    return {name: {"directory": folder, "make": True, "key": key, "from": [to]}}


def _asked_of_one(cmap: Map) -> list[Problem]:
    found = []
    for row in directories(cmap):
        if not row.path.endswith(".uri"):
            what = "names a list of LDAP servers; one of them would move, the others would not"
            found.append(Problem(f"cluster.synapse.{row.path}", what, "leave one address there"))
    ports = sorted({row.port for row in directories(cmap)})
    if len(ports) > 1:
        what = f"LDAP servers on {len(ports)} ports of the legacy machine ({ports}); one can move"
        step = "move the other one by hand and write its new address there"
        found.append(Problem("cluster.synapse.modules", what, step))
    return found


def _of_found(legacy: str, told: Mapping[str, Any]) -> list[Problem]:
    place = f"{legacy}: slapd"
    if "error" in told:
        step = "mend that; a directory that is no OpenLDAP you move by hand (docs/m3-auth.md)"
        return [Problem(place, str(told["error"]), step)]
    if not told["active"]:
        return [Problem(place, "does not run", f"start it (systemctl start slapd on {legacy})")]
    found = []
    if not told["managed"]:
        what = "root may not change cn=config through ldapi:///, so it cannot be made read-only"
        step = (
            "install ldap-utils, have ldapi:/// in SLAPD_SERVICES (/etc/default/slapd), and give "
            "gidNumber=0+uidNumber=0,cn=peercred,cn=external,cn=auth manage on cn=config"
        )
        found.append(Problem(place, what, step))
    rows = told["databases"]
    if len(rows) != 1:
        suffixes = ", ".join(row["suffix"] for row in rows) or "none"
        what = f"has {len(rows)} databases ({suffixes}), one can move"
        return [*found, Problem(place, what, "leave the one that Synapse asks with this slapd")]
    row = rows[0]
    if row["backend"] != "mdb":
        what = f"{row['suffix']} is kept by the backend {row['backend']}, which OpenLDAP gave up"
        step = "load it into one of the backend mdb first (slapcat, slapadd)"
        found.append(Problem(place, what, step))
    if row["replica"]:
        what = f"{row['suffix']} is replicated from another server"
        step = "move that server, or take olcSyncrepl away and let this one be the only one"
        found.append(Problem(place, what, step))
    if row["read_only"]:
        what = f"{row['suffix']} is read-only"
        step = f"salt {legacy} slapd.open, or keep it so and move it by hand"
        found.append(Problem(place, what, step))
    return found


def _of_port(cmap: Map, listeners: list[Mapping[str, Any]]) -> list[Problem]:
    legacy = cmap["legacy"]["minion"]
    port = directories(cmap)[0].port
    units = sorted({row["unit"] or row["program"] for row in listeners if row["port"] == port})
    if any(unit.startswith("slapd") for unit in units):
        return []
    held = f"is held by {', '.join(units)}" if units else "is held by nobody"
    what = f"{held}, and Synapse asks there for slapd"
    step = "start slapd there; what is no OpenLDAP you move by hand (docs/m3-auth.md)"
    return [Problem(f"{legacy}: port {port}", what, step)]


def _of_machine(there: str, told: Mapping[str, Any], slapd: Mapping[str, Any]) -> list[Problem]:
    strangers = sorted(
        {
            row["unit"] or row["program"] or "the kernel"
            for row in told["listeners"]
            if row["port"] == PORT and not row["unit"].startswith("slapd")
        }
    )
    found = []
    if strangers:
        what = f"is held by {', '.join(strangers)}, slapd needs it"
        found.append(Problem(f"{there}: port {PORT}", what, "stop that service there"))
    # The database, what is put aside while it is loaded, and the dump.
    wanted = 3 * int(slapd.get("bytes", 0)) + 64 * MIB
    room = told["free"]["/var/lib/ldap"]["bytes"]
    if room < wanted:
        what = f"{room // MIB} MiB free, {-(-wanted // MIB)} MiB needed for the directory"
        found.append(Problem(f"{there}: /var/lib/ldap", what, "make room there"))
    return found


def _answers(placement: Placement, host: str) -> Ask:
    return Ask(placement.synapse, "slapd.answers", {"host": host, "authority": AUTHORITY_FILE})
