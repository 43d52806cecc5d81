"""What moves to a machine of its own: database, media, auth (M3), Redis (M4); one module each.

Each part answers the same questions (:class:`Part`), so that plan, prechecks, switch and
verdict need not know which part it is. Pure, like the plan.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from ..clustermap import Map, the_machine
from ..errors import Problem
from ..meeting import Check
from ..plan import Placement, Secrets, relays
from . import auth, database, media, redis
from .database import cluster
from .model import Ask, Steps


class Part(Protocol):
    """A part's module."""

    #: Its name, a field of :class:`saltworks.plan.Placement`.
    NAME: str
    #: Role of the machine that it moves to.
    ROLE: str
    #: The milestone that moves it, and what must be achieved before.
    MILESTONE: str
    AFTER: tuple[str, ...]
    #: Roles of the machines that run ``roles.<ROLE>.copied``, and ``copied_back`` on the way back;
    #: empty when there is nothing to copy.
    COPIES_ON: str
    COPIES_BACK_ON: str
    #: Roles of the machines that it changes, beside its own.
    CONCERNS: tuple[str, ...]
    #: Secrets that it needs, made at random when they are missing: name to length in letters.
    SECRETS: Mapping[str, int]
    #: ssh key pairs that it needs: secrets ``<name>_private`` and ``<name>_public``.
    KEY_PAIRS: tuple[str, ...]

    def idle(self, cmap: Map) -> str:
        """Why there is nothing to move, empty when there is something."""

    def configure(self, config: dict[str, Any], cmap: Map, placement: Placement) -> None:
        """Change Synapse's configuration to what it is once the part has moved.

        Secrets stay ``{"secret": name}`` here.
        """

    def machine(
        self, cmap: Map, placement: Placement, minion: str, secret: Secrets
    ) -> dict[str, Any]:
        """Slice of the part's own machine: ``states``, and the pillar of each formula."""

    def legacy(self, cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
        """What the part adds to the legacy machine's slice; ``states`` are added to its own."""

    def synapse(self, cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
        """What the part adds to the pillar ``synapse`` of Synapse's machine, beside its config.

        ``certificates`` (name to PEM), ``service.environment``; merged.
        ``beside``: formulas that are applied before it, as :meth:`legacy` names them.
        """

    def relays(self, cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
        """Relays of the legacy machine that the part needs while it moves."""

    def hold(self, cmap: Map) -> Steps:
        """What has to be done before the copy and stops Synapse for a moment.

        It has a short window of its own. Without an ``act`` there is none.
        """

    def steps(self, cmap: Map, placement: Placement) -> Steps:
        """What is done while Synapse stands still, there and back.

        There when the part is as found, back when it has moved.
        """

    def no_return(self, cmap: Map, placement: Placement) -> list[Problem]:
        """Why it cannot go back now, though it is not finalized."""

    def questions(self, cmap: Map, placement: Placement) -> Mapping[str, Ask]:
        """What its precheck asks of machines, by a name of its own."""

    def problems(self, cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Problem]:
        """What speaks against its move.

        :param told: by the name of the question, its answer or ``{"error": text}``.
        """

    def proofs(self, cmap: Map, placement: Placement) -> Mapping[str, Ask]:
        """What its verdict asks of machines once it has moved."""

    def checks(self, cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Check]:
        """The verdict on the answers to :meth:`proofs`."""


class Asking(Protocol):
    """What a milestone's own module asks of machines, and how it judges the answers."""

    #: Role without whose machine there is nobody to ask.
    ROLE: str

    def questions(self, cmap: Map, placement: Placement) -> Mapping[str, Ask]: ...

    def problems(
        self, cmap: Map, placement: Placement, told: Mapping[str, Any]
    ) -> list[Problem]: ...

    def proofs(self, cmap: Map, placement: Placement) -> Mapping[str, Ask]: ...

    def checks(
        self, cmap: Map, placement: Placement, told: Mapping[str, Any]
    ) -> list[Check]: ...


PARTS: Mapping[str, Part] = {part.NAME: part for part in (database, media, auth, redis)}
"""By name, in the order of their milestones; these and their orchestrations follow this."""

ROLES: Mapping[str, Part] = {part.ROLE: part for part in PARTS.values()}
"""By the role of their machine."""


def moved(placement: Placement) -> list[Part]:
    """The parts that are on machines of their own."""
    return [part for name, part in PARTS.items() if getattr(placement, name)]


def of_milestone(name: str) -> Part | None:
    """The part that a milestone such as ``m3.database`` moves, None for other milestones."""
    return next((part for part in PARTS.values() if name == part.MILESTONE), None)


def asking(name: str) -> Asking | None:
    """The module of a milestone that asks machines itself: a part, or the database's cluster."""
    return cluster if name == cluster.MILESTONE else of_milestone(name)


def begin_problems(
    name: str, placement: Placement, achieved: bool, first: Collection[str] = ()
) -> list[Problem]:
    """Why a milestone may not begin: a window stands open that it would not end.

    :param name: the milestone.
    :param achieved: it is, so its run moves nothing and ends no window, not even that of its own
        way back; nor does it get in another part's way.
    :param first: parts that the same run has moved by then.
    """
    part = of_milestone(name)
    own = {part.NAME} if part else set()
    wrong = open_window(placement, set(PARTS) - own if achieved else {*own, *first})
    return wrong + telling_problems(placement.telling)


def return_problems(name: str, cmap: Map, placement: Placement) -> list[Problem]:
    """Why a milestone's part cannot go back whatever the record says."""
    part = of_milestone(name)
    wrong = open_window(placement, {part.NAME} if part else ())
    wrong += telling_problems(placement.telling)
    if part is None:
        return wrong
    if placement.clustered:
        what = "Synapse's processes find the database's cluster by what M4.workers told them"
        back = f"salt-run state.orchestrate orch.{cluster.MILESTONE}.rollback first"
        wrong.append(Problem(f"milestone {name}", what, back))
    if part is not PARTS["redis"] and placement.redis:
        # Of all of Synapse's processes, a part's window stops main alone.
        what = "workers may be on what it has moved"
        back = f"salt-run state.orchestrate orch.{redis.MILESTONE}.rollback first"
        wrong.append(Problem(f"milestone {name}", what, back))
    if part.NAME in placement.given_up:
        what, end = "is given up where it was found", f"orch.{part.MILESTONE}.finalize"
        do = f"salt-run milestone.arm {part.MILESTONE}.finalize, then {end}: it ends what it began"
        wrong.append(Problem(f"milestone {name}", what, do))
    return wrong + part.no_return(cmap, placement)


def in_window(name: str, placement: Placement | None) -> bool:
    """Whether a run is in the window of a part's move, or has died there.

    The short window before its copy (``held``) is not meant.
    """
    if placement is None:
        return False
    return placement.moving and name in placement.upcoming and placement.held != name


def left_over(name: str, placement: Placement | None) -> bool:
    """Whether Synapse is prepared for a part's move that did not take place."""
    return placement is not None and not placement.moving and name in placement.upcoming


def in_order(names: Collection[str], placement: Placement | None) -> list[str]:
    """Parts in the order in which one run moves them: first the one that people may wait for."""
    known = [name for name in PARTS if name in names]
    return sorted(known, key=lambda name: not in_window(name, placement))


def resumed(name: str, machine: str | None, placement: Placement | None) -> bool:
    """Whether a part's move has come as far as its window, so that what is left begins there.

    A run has died in the window, or after it; or, on the way back, before it has moved at all.

    :param name: the part.
    :param machine: where it moves to; empty: back to where it was found; None: no machine is
        declared for it.
    :param placement: None without a map.
    """
    if placement is None or machine is None:
        return False
    return in_window(name, placement) or getattr(placement, name) == machine


def open_window(placement: Placement, but: Collection[str] = ()) -> list[Problem]:
    """The window of a part's move that a run is in, or that one which died has left open.

    Until it has ended, what is recorded as upcoming and Synapse's configuration for it are that
    part's: another part's move would put its own in their place, start Synapse on what the first
    has left behind, and open the door.

    :param but: parts whose window does not count.
    """
    part = next(iter(placement.upcoming), "") if placement.moving else ""
    if not part or part in but:
        return []
    way, ends = ("to its machine", "") if placement.upcoming[part] else ("back", ".rollback")
    what = f"is on its way {way}: a run is in its window, or died there, and the door may be shut"
    name = PARTS[part].MILESTONE
    do = f"run salt-run state.orchestrate orch.{name}{ends}, which goes on from there"
    return [Problem(f"milestone {name}", what, do)]


def telling_problems(told: Collection[str]) -> list[Problem]:
    """Others are being told of members: nothing else may open the door, or start Synapse.

    :param told: the members.
    """
    if not told:
        return []
    names = ", ".join(sorted(told))
    what = "others are being told of it, or that has failed, and the door may be shut"
    do = "wait until it is over; salt-run reconcile.run goes on with it, reconcile.last says how"
    return [Problem(names, what, do)]


def with_relays(cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
    """All relays of the legacy machine: the plan's, and those of parts on their way."""
    rows = relays(cmap, placement)
    for part in PARTS.values():
        if the_machine(cmap, part.ROLE):
            rows.update(part.relays(cmap, placement))
    return rows
