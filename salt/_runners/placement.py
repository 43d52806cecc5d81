"""Where Synapse and its front are: written by the milestones' windows, read by the plan."""

from __future__ import annotations

from typing import Any

from saltworks import bank, clustermap
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.parts import PARTS
from saltworks.tree import Tree

#: What can be recorded by hand.
THINGS = (
    *("synapse", "front", "managed", "retired", "upcoming", "given_up", "dcs", "clustered"),
    *PARTS,
)


@refusing
def show() -> dict[str, Any]:
    """The placement as recorded.

    CLI Example:

    .. code-block:: bash

        salt-run placement.show
    """
    return bank.read(Tree.of(__opts__).store, "placement")  # type: ignore[name-defined]


@refusing
def put(**places: Any) -> dict[str, Any]:
    """Record where something is from now on.

    :param places: ``synapse=<machine>``, ``front=<machine>``, ``managed=<bool>``,
        ``retired=<bool>``; of M3 ``database``, ``media``, ``auth`` (a machine, or empty for
        as found), ``upcoming`` (the same as a mapping), ``given_up`` (a list of those); of M4
        ``redis`` (a machine, or empty for Synapse in one process), ``dcs=<bool>`` (etcd runs),
        ``clustered=<bool>`` (Patroni runs the database).
    :raises saltworks.errors.Refused: for an unknown thing or machine.

    CLI Example:

    .. code-block:: bash

        salt-run placement.put synapse=synapse
    """
    house = Tree.of(__opts__)  # type: ignore[name-defined]
    wanted = {name: value for name, value in places.items() if not name.startswith("__")}
    machines = (house.map() or {"machines": {}})["machines"]
    wrong = [
        Problem(
            f"placement.{name}", f"{value!r} is not declared", "name a machine of the cluster map"
        )
        for name, value in wanted.items()
        if (name in ("synapse", "front") and value not in machines)
        or (name in PARTS and value not in ("", *machines))
    ] + [
        Problem(f"placement.{name}", "no such thing", f"use one of {', '.join(THINGS)}")
        for name in wanted
        if name not in THINGS
    ]
    if wrong:
        raise Refused("placement", wrong)
    return bank.update(house.store, "placement", **wanted)


@refusing
def remember_host_key(minion: str) -> str:
    """Fetch a machine's ssh host key over Salt's own channel and record it.

    :param minion: a declared machine.

    CLI Example:

    .. code-block:: bash

        salt-run placement.remember_host_key legacy
    """
    from saltworks.minions import Machines

    house = Tree.of(__opts__)  # type: ignore[name-defined]
    cmap = house.map()
    if cmap is None or minion not in cmap["machines"]:
        raise Refused("host key", [Problem(minion, "is not declared", "name a machine of the map")])
    line = str(
        Machines(__opts__).call(  # type: ignore[name-defined]
            minion, "file.read", "/etc/ssh/ssh_host_ed25519_key.pub"
        )
    )
    kind, key = line.split()[:2]
    known = f"{clustermap.address(cmap, minion)} {kind} {key}"
    bank.update(house.store, "host_keys", **{minion: known})
    return known
