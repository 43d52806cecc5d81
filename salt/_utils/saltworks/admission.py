"""Admission: from a proof to an accepted key and a row in the registry."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from . import bank, invites, joins, membership, registry
from .errors import Problem, Refused
from .join_machine import plain
from .keys import Key, Keys
from .tree import Tree

log = logging.getLogger(__name__)

#: Record of those whom an operator wants out, minion to since when and whether its key goes.
OUT = "out"


def now() -> str:
    """The time as the registry has it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def key_refusal(key: Key | None, public_key: str) -> str:
    """Why a proven key may not be accepted as the master's store stands; empty when it may.

    Another key that waits under the id is no reason: whoever came first with it has no
    proof, and would keep the invited machine away for ever.
    """
    if key is None:
        return "no key waits under its id"
    if key.state == "rejected":
        return "an operator rejected the key of that id"
    if key.state == "accepted" and key.public != plain(public_key):
        return "another key is accepted under its id"
    return ""


def admit(house: Tree, keys: Keys, minion: str, public_key: str, proof: str) -> None:
    """Accept the key of an invited machine, and write it into the registry.

    Nothing of the three is believed: the proof must be of a standing invite, this id and this
    very key, which must wait in the master's own store. The use is written down before the
    key is accepted, so that nobody else comes by it if this ends in between; reconcile goes
    on from there.

    :raises Refused: why not; nothing was changed.
    """
    forms = (minion, invites.MINION), (public_key, invites.PUBLIC_KEY), (proof, invites.PROOF)
    if not all(isinstance(word, str) and form.fullmatch(word) for word, form in forms):
        raise _refused(str(minion)[:64], "its id, key or proof has not the form of one")
    cmap = house.map()
    if cmap is None or (row := membership.declared(cmap, minion)) is None:
        raise _refused(minion, "the cluster map has no worker or database of that id")
    own = invites.fingerprint(public_key)
    with house.changing(invites.RECORD) as rows:
        known = invites.of(rows)
        verdict = invites.judged(
            known,
            lambda: house.vault.get(invites.KEY),
            minion,
            public_key,
            proof,
            time.time(),
        )
        if verdict.invite is None:
            raise _refused(minion, verdict.refusal)
        if row.kind == membership.DATABASE and not verdict.invite.one:
            # Many have a pool's secret, and this one would get all that people wrote.
            raise _refused(minion, "a database comes by an invite of its own")
        key = keys.get(minion)
        if why := key_refusal(key, public_key):
            raise _refused(minion, why)
        members = registry.of(bank.read(house.store, registry.RECORD))
        registry.admitted(members, minion, row, own, now())
        rows.update(invites.rows({verdict.invite.pattern: verdict.invite}))
        is_new = minion not in known[verdict.invite.pattern].used
    assert key is not None
    if is_new:
        # Whoever invites a machine wants it in, though it was drained before.
        with house.changing(OUT) as rows:
            rows.pop(minion, None)
        with house.changing(joins.RECORD) as rows:
            if minion in rows:
                rows[minion] = joins.anew(rows[minion])
    if key.fingerprint != own:
        log.warning("join: %s: another key waited under its id, the invited one takes over", minion)
        keys.put_pending(minion, public_key)
    settle(house, keys, minion, own)


def settle(house: Tree, keys: Keys, minion: str, own: str) -> None:
    """What a written use of an invite stands for: the key is accepted, the machine a member.

    :param own: fingerprint of the key that was let in.
    :raises Refused: the store or the registry has another key.
    """
    cmap = house.map()
    clustered = cmap is not None and house.placement(cmap).clustered
    row = membership.declared(cmap, minion, clustered=clustered) if cmap else None
    key = keys.get(minion)
    if row is None or key is None or key.fingerprint != own:
        raise _refused(minion, "its key went away, or the map has it no longer")
    if key.state == "pending":
        keys.accept(minion)
        key = keys.get(minion)
        if key is None or key.state != "accepted":
            raise _refused(minion, "Salt does not accept its key; is it a public key?")
    with house.changing(registry.RECORD) as rows:
        members = registry.of(rows)
        joined = registry.admitted(members, minion, row, own, now())
        rows.update(registry.rows(joined))
    log.warning("join: %s is admitted, of the kind %s", minion, row.kind)


def _refused(minion: str, why: str) -> Refused:
    see = "salt-run join.list has the invites, salt-run join.invite makes one"
    return Refused("admission", [Problem(repr(minion), why, see)])
