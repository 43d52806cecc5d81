"""What the reactors make of events: a few checked scalars for a runner, or nothing.

Events are hints. An unauthenticated machine says anything in ``salt/auth``, an accepted
minion fires nearly any tag with any body. So nothing is believed here and nothing is changed.
What is not plausible ends here, in less than a millisecond, instead of as a runner job: the
master's workers of reactions are few, and one flood must not keep another machine waiting. The
runner judges again, by the key store.

The reactor is one process, and this module's state is its own; all of it is bounded.
"""

from __future__ import annotations

import collections
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import bank, invites, passes, registry
from .errors import Refused
from .tree import Tree
from .vault import Vault

log = logging.getLogger(__name__)

#: Authentications that may be of an invited machine: its key is new or waits; or another key
#: waits under its id.
ACTS = ("pend", "denied")

#: The grain by which minions show their proof.
GRAIN = "join_proof"

#: One who is let in says so again until it is done; this often is enough, in seconds.
AGAIN_SECONDS = 5.0

#: So many may be handed on within that time, of all and of one invite: each is a process of the
#: master's.
MOST, MOST_OF_ONE = 50, 20

#: Lines a minute that refusals may write into the log.
LINES = 60


@dataclass(frozen=True)
class Request:
    """What an invited machine says of itself, checked for its form only."""

    minion: str
    public_key: str
    proof: str


def request(data: Mapping[str, Any]) -> Request | str | None:
    """The request in an event ``salt/auth``.

    :returns: the reason when it is malformed; None when the event is none of a joining machine.
    """
    grains = data.get("autosign_grains")
    if data.get("act") not in ACTS or not isinstance(grains, Mapping) or GRAIN not in grains:
        return None
    for what, value, form in (
        ("id", data.get("id"), invites.MINION),
        ("public key", data.get("pub"), invites.PUBLIC_KEY),
        ("proof", grains[GRAIN], invites.PROOF),
    ):
        if not isinstance(value, str) or len(value) > 2500 or not form.fullmatch(value):
            return f"its {what} has not the form of one"
    return Request(data["id"], data["pub"], grains[GRAIN])


class Refusals:
    """The log's lines on refusals: each with its reason, not more than ``LINES`` a minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: collections.deque[float] = collections.deque(maxlen=LINES)
        self._kept_back = 0

    def write(self, who: Any, why: str, what: str = "is refused") -> None:
        """Write one line, or count what was not written."""
        now = self._clock()
        if len(self._written) == LINES and now - self._written[0] < 60:
            self._kept_back += 1
            return
        self._written.append(now)
        if self._kept_back:
            log.warning("join: %d more lines like the next were not written", self._kept_back)
            self._kept_back = 0
        name = who[:64] if isinstance(who, str) else type(who).__name__
        log.warning("join: %r %s: %s", name, what, why)


class Recent:
    """What was handed on in the last ``AGAIN_SECONDS``: each once, and so many at a time.

    :param most: of all.
    :param of_one: by one invite: who has a pool's secret must not keep the others away.
    """

    def __init__(
        self,
        most: int = MOST,
        of_one: int = MOST_OF_ONE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._most, self._of_one = most, of_one
        self._at: collections.OrderedDict[tuple[str, Any], float] = collections.OrderedDict()

    def verdict(self, invite: str, what: Any) -> str:
        """``new`` when it is to be handed on, as from now on it was; ``again``; or ``many``.

        :param invite: by which it comes, its pattern.
        """
        now = self._clock()
        while self._at and now - next(iter(self._at.values())) >= AGAIN_SECONDS:
            self._at.popitem(last=False)
        if (invite, what) in self._at:
            return "again"
        by_it = sum(pattern == invite for pattern, _ in self._at)
        if len(self._at) >= self._most or by_it >= self._of_one:
            return "many"
        self._at[invite, what] = now
        return "new"


_refusals = Refusals()
#: Of start events, so that a flood of them keeps no line on a proof back.
_strange_starts = Refusals()
#: Of those who come in a crowd, for the same reason.
_crowd = Refusals()
_recent = Recent()
_houses: dict[str, Tree] = {}
_keys: dict[Path, tuple[int, str]] = {}


def auth(opts: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The reaction to an authentication: an invited machine with its proof is admitted.

    :param opts: the master's options.
    :param data: the event's body.
    """
    asked = request(data)
    if asked is None:
        return {}
    if isinstance(asked, str):
        _refusals.write(data.get("id"), asked)
        return {}
    house = _house(opts)
    known = invites.of(bank.read(house.store, invites.RECORD))
    try:
        verdict = invites.judged(
            known, lambda: _key(house), asked.minion, asked.public_key, asked.proof, time.time()
        )
    except Refused as error:
        _refusals.write(asked.minion, error.line)
        return {}
    if verdict.refusal:
        _refusals.write(asked.minion, verdict.refusal)
        return {}
    own = asked.minion, invites.fingerprint(asked.public_key)
    recent = _recent.verdict(verdict.invite.pattern if verdict.invite else "", own)
    if recent == "many":
        _crowd.write(asked.minion, "too many come at once; it asks again by itself", "waits")
    if recent != "new":
        return {}
    # Salt takes a list of mappings with one key each, and says so only in the log.
    args = [
        {"minion": asked.minion},
        {"public_key": asked.public_key},
        {"proof": asked.proof},
    ]
    return {"saltworks-admit": {"runner.join.admit": [{"args": args}]}}


def start(opts: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """The reaction to a minion's start: a pass of reconcile, if it is a member and none is due.

    :param opts: the master's options.
    :param data: the event's body.
    """
    minion = data.get("id")
    if not isinstance(minion, str) or len(minion) > 64 or not invites.MINION.fullmatch(minion):
        _strange_starts.write(minion, "the id in its start event has not the form of one")
        return {}
    house = _house(opts)
    if minion not in bank.read(house.store, registry.RECORD):
        if not (Path(opts["pki_dir"]) / "minions" / minion).exists():
            _strange_starts.write(minion, "it is said to start, and no key is accepted")
        return {}
    if passes.wanted(house.records):
        return {}
    return {"saltworks-poke": {"runner.reconcile.poke": []}}


def _key(house: Tree) -> str:
    """The key of invites, decrypted once for each time that the vault was written."""
    written = house.vault.path.stat().st_mtime_ns if house.vault.path.exists() else 0
    if _keys.get(house.vault.path, (0, ""))[0] != written:
        # What a vault has read it keeps.
        fresh = Vault(house.vault.path, house.vault.keyring)
        _keys[house.vault.path] = (written, fresh.get(invites.KEY))
    return _keys[house.vault.path][1]


def _house(opts: Mapping[str, Any]) -> Tree:
    where = str(opts["conf_file"])
    if where not in _houses:
        _houses[where] = Tree.of(opts)
    return _houses[where]
