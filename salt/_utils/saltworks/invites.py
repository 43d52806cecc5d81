"""Invitations to join: who may come, until when, and the proof that one was invited.

An invite names one minion id, or a bounded pattern of ids. The machine that has its secret
proves that without showing it: HMAC-SHA256(secret, id + newline + its public key). Who sees
such a proof can do nothing with it: it is good for that key alone, and whose private half
never leaves the machine.

No secret is stored: it is derived from the master's ``join_key``, which is encrypted in the
vault, and the invite's nonce. The record ``invites`` of the bank has the rest.

Pure, but for what is taken at random: nonce and key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .errors import Problem, Refused
from .join_machine import plain, proof_of
from .lock import stamp

#: Name of the record in the bank, and of the secret in the vault that all invites hang on.
RECORD, KEY = "invites", "join_key"

#: Ids that can be invited: as in the cluster map's schema. Salt's own rule lets globs, newlines
#: and templates through.
MINION = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,62}[a-z0-9])?")

#: A pattern is the start of an id and a star for the rest.
PATTERN = re.compile(r"[a-z0-9][a-z0-9.-]{0,46}-\*")

PROOF = re.compile(r"[0-9a-f]{64}")

#: A public key as minions send it; RSA of 4096 bits has 800 characters.
PUBLIC_KEY = re.compile(
    r"-----BEGIN (RSA )?PUBLIC KEY-----[\sA-Za-z0-9+/=]{1,2000}-----END (RSA )?PUBLIC KEY-----\s*"
)

#: How often a pattern may be used, and for how long any invite stands, at most.
MOST_USES, MOST_SECONDS = 1000, 366 * 86400

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Invite:
    """Leave to join.

    :param pattern: a minion id, or the start of ids and a star.
    :param nonce: what makes its secret another than that of an earlier invite.
    :param uses: how many machines may come by it.
    :param made: when it was made, seconds since the epoch.
    :param expires: until when it stands.
    :param used: who came by it: minion id to the fingerprint of the key that it came with.
    """

    pattern: str
    nonce: str
    uses: int
    made: float
    expires: float
    used: Mapping[str, str] = field(default_factory=dict)

    @property
    def one(self) -> bool:
        """Whether it names one machine."""
        return not self.pattern.endswith("*")


def of(rows: Mapping[str, Any]) -> dict[str, Invite]:
    """The invites out of their record."""
    return {name: Invite(**row) for name, row in sorted(rows.items())}


def rows(invites: Mapping[str, Invite]) -> dict[str, Any]:
    """The record of invites."""
    return {name: asdict(invite) for name, invite in sorted(invites.items())}


def fresh(pattern: str, uses: int, seconds: float, now: float) -> Invite:
    """A new invite.

    :raises Refused: with all that is wrong with the words.
    """
    wrong = []
    if not MINION.fullmatch(pattern) and not PATTERN.fullmatch(pattern):
        name = "name a minion id such as sync-2, or the start of ids such as 'sync-*'"
        wrong.append(Problem(repr(pattern), "is no minion id and no pattern", name))
    elif uses != 1 and not pattern.endswith("*"):
        one = f"leave uses away, or invite a pattern such as '{pattern}-*'"
        wrong.append(Problem("uses", f"{pattern} is one machine, {uses} cannot come", one))
    if not 1 <= uses <= MOST_USES:
        wrong.append(Problem("uses", f"{uses} is not possible", f"say 1 to {MOST_USES}"))
    if not 1 <= seconds <= MOST_SECONDS:
        wrong.append(Problem("ttl", f"{seconds:.0f} s is not possible", "say 1s to 366d"))
    if wrong:
        raise Refused("invite", wrong)
    return Invite(pattern, secrets.token_hex(16), uses, now, now + seconds)


def fresh_key() -> str:
    """A new ``join_key``: with another one no standing invite is good any more."""
    return secrets.token_hex(32)


def shown(invite: Invite, now: float) -> dict[str, Any]:
    """An invite for the operator's screen; nothing in it is secret."""
    over = "expired" if now >= invite.expires else ""
    if len(invite.used) >= invite.uses:
        over = "used up"
    return {
        "invite": invite.pattern,
        "state": over or "stands",
        "expires": stamp(invite.expires),
        "used": f"{len(invite.used)} of {invite.uses}",
        "by": sorted(invite.used),
    }


def spent(invites: Mapping[str, Invite], minion: str) -> dict[str, Invite]:
    """The invites without leave to come for the key that came by them under an id.

    The use stays used: a machine whose key was removed does not come back by the old proof.
    """
    return {
        name: replace(row, used={**row.used, minion: ""}) if minion in row.used else row
        for name, row in invites.items()
    }


def seconds_of(ttl: str | int) -> int:
    """Seconds of a time to live such as ``30m``; a bare number is of seconds.

    :raises Refused: it is no such time.
    """
    found = re.fullmatch(r"([0-9]{1,9})([smhd]?)", str(ttl))
    if not found:
        raise Refused("invite", [Problem("ttl", f"{ttl!r} is no time", "say 90s, 30m, 12h or 7d")])
    return int(found[1]) * _UNITS[found[2] or "s"]


def secret_of(invite: Invite, key: str) -> str:
    """The invite's secret.

    :param key: the vault's ``join_key``.
    """
    words = f"{invite.pattern}\n{invite.nonce}"
    return hmac.new(key.encode(), words.encode(), hashlib.sha256).hexdigest()


def fingerprint(public_key: str) -> str:
    """SHA-256 of a public key."""
    return hashlib.sha256(plain(public_key).encode()).hexdigest()


def covering(invites: Mapping[str, Invite], minion: str, now: float) -> list[Invite]:
    """The invites that a minion may come by, its own before patterns; not those that are over."""
    if not MINION.fullmatch(minion):
        return []
    rows = [row for row in invites.values() if now < row.expires and matches(row.pattern, minion)]
    return sorted(rows, key=lambda invite: (not invite.one, invite.pattern))


def matches(pattern: str, minion: str) -> bool:
    """Whether an id is a pattern's: the same, or longer than what is before its star."""
    if pattern.endswith("*"):
        return len(minion) >= len(pattern) and minion.startswith(pattern[:-1])
    return minion == pattern


@dataclass(frozen=True)
class Verdict:
    """What becomes of who asks to join.

    :param invite: by which it comes, with this use in it; None when it is refused.
    :param refusal: why, empty when it is not.
    """

    invite: Invite | None
    refusal: str = ""


def judged(
    invites: Mapping[str, Invite],
    key: Callable[[], str],
    minion: str,
    public_key: str,
    proof: str,
    now: float,
) -> Verdict:
    """Whether a machine with an id, a public key and a proof may come.

    What was used by this very key before is good again: a run that died goes on.

    :param key: gives the vault's ``join_key``; called only if an invite covers the id.
    :param now: seconds since the epoch.
    """
    own = fingerprint(public_key)
    found = covering(invites, minion, now)
    for invite in found:
        expected = proof_of(secret_of(invite, key()), minion, public_key)
        if not hmac.compare_digest(expected, proof):
            continue
        by = invite.used.get(minion)
        if by is not None and by != own:
            return Verdict(None, "its invite was used by another key")
        if by is None and len(invite.used) >= invite.uses:
            return Verdict(None, f"the invite {invite.pattern} is used up")
        return Verdict(replace(invite, used={**invite.used, minion: own}))
    if found:
        return Verdict(None, "its proof is not of this invite, id and key")
    late = minion in invites and MINION.fullmatch(minion)
    return Verdict(None, "its invite has expired" if late else "it is not invited")
