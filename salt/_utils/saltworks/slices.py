"""Each machine's slice of the plan: the pillar of its formulas, and nobody else's secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import clustermap, membership, milestone, modules, parts, worker_slices, workers
from .clustermap import SINGLE_ROLES, Map
from .parts.database import cluster
from .plan import (
    ARTIFACTS_DIR,
    CONFIG_DIR,
    DATA_DIR,
    HANDOVER_DIR,
    POLL_PORT,
    PORT,
    SERVICE,
    UNIT_ENVIRONMENT,
    USER,
    Placement,
    Secrets,
    announce_seconds,
    backends,
    backup,
    door_target,
    drain_port,
    endpoint,
    transfers,
)
from .synapse_config import homeserver_config, resolve

#: Name of our site in nginx, and of its logs.
SITE = "saltworks-chat"


def slice_for(
    cmap: Map,
    placement: Placement,
    minion: str,
    secret: Secrets,
    *,
    artifact: Mapping[str, str] | None = None,
    host_keys: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """One machine's pillar: what its formulas need, and no other machine's secrets.

    :param minion: id of a declared machine; another id gets an empty slice.
    :param artifact: ``source`` and ``source_hash`` of the built release, if built.
    :param host_keys: ssh host key line of machines, by id.
    """
    row = cmap["machines"].get(minion) or _member_row(placement, minion)
    if row is None:
        return {}
    machines = {**cmap["machines"], minion: row}
    slices: dict[str, Any] = {
        "saltworks": {"cluster": cmap["name"], "minion": minion, "role": row["role"]},
        "base": {"hosts": _hosts(machines, placement)},
    }
    per_role = {
        "master": _master_slice,
        "legacy": _legacy_slice,
        "proxy": _proxy_slice,
        "synapse": _synapse_slice,
        "worker": _worker_slice,
        "dcs": cluster.dcs,
        **{role: part.machine for role, part in parts.ROLES.items()},
    }[row["role"]]
    if row["role"] == cluster.ROLE:
        # One that the map does not name any more is a member until it has left.
        cmap = {**cmap, "machines": machines}
    extra = per_role(cmap, placement, minion, secret)
    if "synapse" in extra and artifact:
        extra["synapse"]["release"] = dict(artifact)
    if "transfer" in extra and extra["transfer"].get("from"):
        other = clustermap.at(cmap, extra["transfer"]["from"])
        extra["transfer"]["host_key"] = (host_keys or {}).get(other, "")
    slices["saltworks"]["states"] = extra.pop("states")
    slices.update(extra)
    return slices


def for_orchestrations(
    cmap: Map | None, placement: Placement | None, record: milestone.Record
) -> dict[str, Any]:
    """What orchestrations are rendered with: who has which role, what is achieved. No secret.

    :param cmap: the checked cluster map; None when there is none, or a bad one.
    :param placement: where things stand; None without a map.
    :param record: the milestones' record.
    """
    roles = (*SINGLE_ROLES, cluster.ROLE)
    machines = {role: clustermap.the_machine(cmap, role) if cmap else None for role in roles}
    of_m3 = milestone.parts_of("m3")
    return {
        "saltworks": {
            "machines": {role: name or "" for role, name in machines.items()},
            "achieved": {
                name: milestone.is_achieved(record, name) for name in ("m3", *milestone.AFTER)
            },
            "front": placement.front if placement else "",
            "moving": bool(placement and placement.moving),
            "given_up": list(placement.given_up) if placement else [],
            "cluster": {
                "watchers": cluster.watchers(cmap) if cmap else [],
                "databases": list(cluster.running(placement)) if placement else [],
                "secrets": dict(cluster.SECRETS),
            },
            "m3": parts.in_order(
                [name for name, part in parts.PARTS.items() if part.MILESTONE in of_m3], placement
            ),
            "parts": {
                name: {
                    "milestone": part.MILESTONE,
                    "role": part.ROLE,
                    "secrets": dict(part.SECRETS),
                    "key_pairs": list(part.KEY_PAIRS),
                    "idle": bool(cmap and part.idle(cmap)),
                    "holds": bool(cmap and part.hold(cmap).act),
                    "machine": machines[part.ROLE] or "",
                    "resumed": parts.resumed(name, machines[part.ROLE], placement),
                    "left_over": parts.left_over(name, placement),
                    "resumed_back": parts.resumed(name, "", placement),
                    "copies_on": machines.get(part.COPIES_ON) or "",
                    "copies_back_on": machines.get(part.COPIES_BACK_ON) or "",
                    "copies": bool(part.COPIES_ON),
                    "from_legacy": "legacy" in part.CONCERNS,
                    "concerns": [found for role in part.CONCERNS if (found := machines[role])],
                }
                for name, part in parts.PARTS.items()
            },
        }
    }


def _master_slice(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    version = cmap["releases"]["synapse"]
    return {
        "states": ["base"],
        "synapse": {
            "version": version,
            "build": {
                "requirements": f"salt://synapse/files/releases/{version}.txt",
                "directory": ARTIFACTS_DIR,
                **cmap["build"],
            },
        },
    }


def _legacy_slice(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    found, listener = cmap["legacy"], cmap["legacy"]["listener"]
    front_here = placement.front == minion
    synapse_here = placement.synapse == minion
    synapse = clustermap.the_machine(cmap, "synapse")
    states = ["base"]
    if placement.managed:
        states += ["relay"]
        states += ["nginx.absent" if placement.retired else "nginx"]
        if synapse_here:
            states += ["synapse.prepared" if placement.moving else "synapse"]
        else:
            states += ["synapse.absent"]
    slices: dict[str, Any] = {
        "states": states,
        "relay": parts.with_relays(cmap, placement),
        "legacy": {
            "unit": found["unit"],
            "config_path": found["config_path"],
            "user": found["user"],
            "group": found["group"],
            "version": cmap["releases"]["synapse"],
            "database": dict(cmap["synapse"]["database"]),
            "backup": backup(cmap["backup"]["directory"], cmap["synapse"]["database"]),
            "background_updates": cmap.get("upgrade", {}).get("background_updates"),
            "drain_port": drain_port(cmap, placement),
            "announce_seconds": announce_seconds(cmap),
            "url": f"http://127.0.0.1:{PORT}",
            "found_url": f"http://{endpoint(listener['address'], listener['port'])}",
        },
        "nginx": _nginx_slice(cmap, placement, minion, secret, relayed=not front_here),
        "transfer": {
            "offers": {
                name: {
                    "directory": row["source"],
                    "make": row["source"] == HANDOVER_DIR,
                    "key": secret(f"transfer_{name}_public"),
                    "from": [clustermap.address(cmap, synapse)],
                }
                for name, row in transfers(cmap).items()
                if synapse and not placement.retired
            }
        },
    }
    if synapse_here:
        slices["synapse"] = _synapse_formula(cmap, placement, minion, secret)
        slices["synapse"].update(user=found["user"], group=found["group"], manage_user=False)
        slices["synapse"]["service"]["running"] = placement.managed
        slices["synapse"]["service"]["read_write_paths"] = [
            found["media_store_path"],
            *_sqlite_directory(cmap["synapse"]["database"]),
        ]
    for part in parts.PARTS.values():
        if clustermap.the_machine(cmap, part.ROLE):
            added = part.legacy(cmap, placement, secret)
            states += added.pop("states", [])
            _merge(slices, added)
    if placement.managed:
        kept = slices["transfer"]["offers"] or not placement.retired
        states.append("transfer" if kept else "transfer.absent")
    return slices


def _member_row(placement: Placement, minion: str) -> dict[str, str] | None:
    """What the map would say of a machine of a pool, which comes and goes."""
    for member in placement.members:
        if member.minion == minion and member.address:
            role = cluster.ROLE if member.kind == membership.DATABASE else "worker"
            return {"role": role, "address": member.address}
    return None


def _hosts(machines: Mapping[str, Any], placement: Placement) -> dict[str, str]:
    """Names and addresses, by name; of databases also those that the map names no more.

    Until such a one has left, Synapse may find its database there.
    """
    left = {
        row.minion: row.address
        for row in placement.members
        if row.kind == membership.DATABASE and row.state != "gone" and row.address
    }
    named = {name: row["address"] for name, row in machines.items()}
    return dict(sorted({**left, **named}.items()))


def _worker_slice(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    if not workers.of(placement).of(minion):
        return worker_slices.nothing_runs()
    formula = _synapse_base(cmap, placement, secret)
    return worker_slices.worker(cmap, placement, minion, secret, formula)


def _synapse_slice(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    here = placement.synapse == minion
    formula = _synapse_formula(cmap, placement, minion, secret)
    formula["service"]["running"] = here
    if placement.upcoming:
        formula["upcoming"] = homeserver_config(cmap, placement.next(), minion, secret)
        # Of an earlier window nothing may be left that this one would go back to.
        formula["keep_previous"] = placement.moving
    beside: dict[str, Any] = {}
    beside_states: list[str] = []
    for part in parts.PARTS.values():
        if clustermap.the_machine(cmap, part.ROLE):
            added = part.synapse(cmap, placement, secret)
            more = added.pop("beside", {})
            beside_states += more.pop("states", [])
            beside.update(more)
            _merge(formula, added)
    proxy = clustermap.the_machine(cmap, "proxy")
    clients = [clustermap.address(cmap, proxy)] if proxy else []
    # The firewall first: from its first moment Synapse listens to nobody else.
    # What is about to move changes unit and modules: Synapse takes that up when it is stopped
    # for it, not before.
    held = placement.moving or placement.upcoming or minion in placement.stopped
    states = ["base", "firewall", *beside_states, "synapse.prepared" if held else "synapse"]
    return {
        "states": [*states, "transfer.absent" if placement.retired else "transfer"],
        "firewall": {
            "ports": {
                **{port: list(clients) for port in (PORT, POLL_PORT)},
                **worker_slices.main_ports(cmap, placement),
            }
        },
        "synapse": formula,
        **beside,
        "transfer": {
            "from": clustermap.address(cmap, cmap["legacy"]["minion"]),
            # Once people write here, fetching again would delete what they wrote.
            "pulls": {
                name: {**row, "key": secret(f"transfer_{name}_private")}
                for name, row in transfers(cmap).items()
            }
            if not here and not placement.retired
            else {},
        },
    }


def _proxy_slice(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    # Who opens the door says so elsewhere, as long as something is done behind it.
    held = placement.moving or placement.telling
    return {
        "states": ["base", "nginx.loaded" if held else "nginx"],
        "nginx": _nginx_slice(cmap, placement, minion, secret, relayed=False),
    }


def _nginx_slice(
    cmap: Map, placement: Placement, minion: str, secret: Secrets, *, relayed: bool
) -> dict[str, Any]:
    public = cmap["public"]
    at_home = minion == cmap["legacy"]["minion"]
    site: dict[str, Any] = {
        "name": SITE,
        "server_names": [public["name"]],
        "ports": list(public["ports"]),
        "client_max_body_size": public.get("client_max_body_size", "50M"),
        "well_known": dict(public.get("well_known", {})),
        "real_ip_from": [],
        "kind": "relay" if relayed else "synapse",
    }
    if relayed:
        site["relay_to"] = {
            "address": clustermap.address(cmap, placement.front),
            "port": public["ports"][0],
            "name": public["name"],
        }
    elif not at_home:
        site["real_ip_from"] = [clustermap.address(cmap, cmap["legacy"]["minion"])]
    targets = backends(cmap, placement, minion)
    return {
        "manage_server": not at_home,
        "replaces": list(cmap["legacy"]["nginx_sites"]) if at_home else [],
        "certificate": {"crt": secret("tls_certificate"), "key": secret("tls_key")},
        "site": site,
        "door": {
            "target": door_target(cmap, placement, minion),
            "targets": {name: row.as_pillar() for name, row in targets.items()},
        },
        **({} if at_home else worker_slices.nginx(cmap, placement)),
    }


def _synapse_formula(
    cmap: Map, placement: Placement, minion: str, secret: Secrets
) -> dict[str, Any]:
    return {
        **_synapse_base(cmap, placement, secret),
        "config": homeserver_config(cmap, placement, minion, secret),
    }


def _synapse_base(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """The pillar ``synapse`` as far as it is the same wherever a process of Synapse runs."""
    return {
        "version": cmap["releases"]["synapse"],
        "user": USER,
        "group": USER,
        "manage_user": True,
        "config_dir": CONFIG_DIR,
        "data_dir": DATA_DIR,
        "plugins": modules.plugins(cmap),
        "databases": {
            "services": cluster.service(placement),
            "standbys": cluster.standbys(cmap, placement),
        },
        "certificates": resolve(modules.certificates(cmap), secret),
        "signing_key": secret("signing_key"),
        "service": {
            "name": SERVICE,
            "enabled": True,
            "read_write_paths": [],
            "environment": dict(UNIT_ENVIRONMENT),
        },
    }


def _merge(into: dict[str, Any], added: Mapping[str, Any]) -> None:
    for key, value in added.items():
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _sqlite_directory(database: Mapping[str, Any]) -> list[str]:
    return [database["path"].rpartition("/")[0]] if database["engine"] == "sqlite3" else []
