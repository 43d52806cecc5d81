"""Read a hand-made homeserver and write the cluster map and the secrets from it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from saltworks import adopt, bank, clustermap, plan, releases, ssh_keys
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.minions import Machines
from saltworks.tree import Tree

__opts__: dict[str, Any]


@refusing
def homeserver(
    minion: str,
    unit: str | None = None,
    accepted: Sequence[str] = (),
    overwrite: bool = False,
    release: str | None = None,
) -> str:
    """Judge every key of the server on a minion; write the map and the secrets.

    :param minion: id of the machine on which Synapse runs.
    :param unit: its systemd unit, when more than one Synapse runs there.
    :param accepted: keys you agree to lose.
    :param overwrite: write over a cluster map that is there already.
    :param release: the version that M1 goes to; the newest one with a lock in
        formulas/synapse/files/releases when nothing is said.
    :returns: the report; with problems nothing is written and the run fails.

    CLI Example:

    .. code-block:: bash

        salt-run adopt.homeserver legacy accepted='[enable_group_creation]'
    """
    house = Tree.of(__opts__)
    if house.map_path.exists() and not overwrite:
        raise Refused(
            "adopt",
            [
                Problem(
                    str(house.map_path),
                    "a cluster map is there already",
                    "remove it, or say overwrite=True",
                )
            ],
        )
    target = releases.target(house.root, release)
    begun = sorted(bank.read(house.store, "milestones"))
    if begun:
        raise Refused(
            "adopt",
            [
                Problem(
                    str(house.map_path),
                    f"{begun[0].upper()} has begun, the hand-made configuration is history",
                    "edit the cluster map, and put secrets with salt-run secret.put",
                )
            ],
        )
    machines = Machines(__opts__)
    machines.call(minion, "saltutil.sync_all")
    arguments = [unit] if unit else []
    found = machines.call_unrecorded(minion, "homeserver.read", *arguments)
    facts = machines.call(minion, "synapse_db.facts", found["config_path"])
    if facts["engine"] == "postgresql":
        found["postgresql_version"] = facts["server_version"]
    found["master"] = _master(machines, house.master_minion.removesuffix("_master"))
    lock = releases.lock(house.root, target)
    adoption = adopt.judge(
        found,
        target,
        accepted=tuple(accepted),
        available_modules=adopt.requirements(lock.read_text(encoding="utf-8")),
    )
    report = adopt.render(adoption)
    wrong = adoption.problems or clustermap.problems(adoption.cluster_map, house.schema())
    if wrong:
        raise Refused(f"{report}\nadopt", wrong)
    found_here = {"synapse": minion, "front": minion, "managed": False}
    bank.write(house.store, "placement", found_here)
    house.vault.put({**adoption.secrets, **_transfer_keys(plan.transfers(adoption.cluster_map))})
    temporary = house.map_path.with_suffix(".writing")
    temporary.write_text(adopt.dump_map(adoption.cluster_map), encoding="utf-8")
    os.replace(temporary, house.map_path)
    return f"{report}\nwritten: {house.map_path} and {house.vault.path}"


def _master(machines: Machines, name: str) -> dict[str, Any]:
    """The minion on the master's own machine, for the mapping ``found``.

    :param name: id of the master without the suffix that Salt gives it.
    """
    if name not in machines.accepted():
        return {"minion": name, "accepted": False}
    addresses: list[str] = []
    for function in ("network.ip_addrs", "network.ip_addrs6"):
        addresses += machines.call(name, function)
    return {"minion": name, "accepted": True, "addresses": addresses}


def _transfer_keys(names: Iterable[str]) -> dict[str, str]:
    """One ssh key pair for each tree that later moves to a machine of its own."""
    pairs: dict[str, str] = {}
    for name in names:
        pairs |= ssh_keys.pair(f"transfer_{name}")
    return pairs
