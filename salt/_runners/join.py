"""Machines that come by themselves: ``salt-run join.invite sync-2``."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from saltworks import admission, bank, clustermap, invites, membership, passes, user_data
from saltworks.errors import Problem, Refused
from saltworks.keys import Keys
from saltworks.loaders import refusing
from saltworks.lock import stamp
from saltworks.tree import Tree

log = logging.getLogger(__name__)

__opts__: dict[str, Any]

__func_alias__ = {"list_": "list"}


@refusing
def invite(pattern: str, ttl: str = "30m", uses: int = 1, master: str | None = None) -> str:
    """Let a machine join, or so many of those whose ids begin alike.

    The secret is in the user-data alone, a file of mode 0600 on the master that goes away
    when the invite is over; it is neither printed nor in Salt's job cache.

    :param pattern: a minion id that the cluster map declares as a worker, or the start of ids
        of one of its pools, such as ``'sync-*'``.
    :param ttl: for how long it stands: ``90s``, ``30m``, ``12h`` or ``7d``.
    :param uses: how many machines may come by a pattern.
    :param master: name or address by which the machine reaches the master; the address of the
        map's master when nothing is said.
    :raises saltworks.errors.Refused: it may not be invited, or is already.

    CLI Example:

    .. code-block:: bash

        salt-run join.invite sync-2 ttl=1h
        salt-run join.invite 'sync-*' uses=20 ttl=30d
    """
    house = Tree.of(__opts__)
    cmap = house.map()
    now = time.time()
    made = invites.fresh(str(pattern), int(uses), invites.seconds_of(ttl), now)
    wrong = []
    if cmap is None or not membership.may_be_invited(cmap, pattern):
        declare = "declare it in pillar/cluster.sls: a machine with the role worker or database, "
        declare += "or a pool"
        wrong.append(Problem(pattern, "is no worker or database in the cluster map", declare))
    machine = clustermap.the_machine(cmap, "master") if cmap else None
    if not (master or machine):
        wrong.append(Problem("master", "the map has none", "say master=<name or address>"))
    if wrong or cmap is None:
        raise Refused("invite", wrong)
    address = master or clustermap.address(cmap, str(machine))
    vault = house.vault
    if invites.KEY not in vault.names():
        vault.put({invites.KEY: invites.fresh_key()})
    secret = invites.secret_of(made, vault.get(invites.KEY))
    finger = Keys(__opts__).master_finger()
    with house.changing(invites.RECORD) as rows:
        standing = invites.of(rows).get(pattern)
        if standing and now < standing.expires and len(standing.used) < standing.uses:
            what = f"is invited until {stamp(standing.expires)}"
            raise Refused("invite", [Problem(pattern, what, f"salt-run join.revoke '{pattern}'")])
        rows.update(invites.rows({pattern: made}))
        path = _write(house, made, user_data.render(made, secret, address, finger))
    many = "" if made.one else f", {made.uses} machines"
    return f"{pattern} is invited until {stamp(made.expires)}{many}; user-data: {path}"


@refusing
def list_() -> list[dict[str, Any]]:
    """The invites, until when they stand, and who came by them.

    CLI Example:

    .. code-block:: bash

        salt-run join.list
    """
    known = invites.of(_rows(Tree.of(__opts__)))
    return [invites.shown(row, time.time()) for row in known.values()]


@refusing
def revoke(pattern: str) -> str:
    """Take an invite back; who came by it stays.

    :raises saltworks.errors.Refused: there is none of that name.

    CLI Example:

    .. code-block:: bash

        salt-run join.revoke 'sync-*'
    """
    house = Tree.of(__opts__)
    with house.changing(invites.RECORD) as rows:
        if pattern not in rows:
            there = ", ".join(sorted(rows)) or "none"
            raise Refused("revoke", [Problem(pattern, "is not invited", f"invites: {there}")])
        del rows[pattern]
        house.user_data(pattern).unlink(missing_ok=True)
    return f"{pattern} is invited no longer"


@refusing
def admit(minion: str, public_key: str, proof: str) -> str:
    """Accept the key of an invited machine; the reactor calls this with what it heard.

    :param minion: the id.
    :param public_key: the minion's.
    :param proof: see :mod:`saltworks.invites`.
    :raises saltworks.errors.Refused: why it is not admitted; nothing was changed.
    """
    house = Tree.of(__opts__)
    try:
        admission.admit(house, Keys(__opts__), minion, public_key, proof)
    except Refused as error:
        log.warning("join: %r is refused: %s", str(minion)[:64], error.line)
        raise
    passes.poke(house.records, passes.starter(__opts__))
    return f"{minion} is admitted"


def _rows(house: Tree) -> dict[str, Any]:
    return bank.read(house.store, invites.RECORD)


def _write(house: Tree, made: invites.Invite, text: str) -> Path:
    path = house.user_data(made.pattern)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        out.write(text)
    return path
