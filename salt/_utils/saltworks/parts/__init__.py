"""What M3 moves to machines of their own: database, media, auth; one module each.

Each part answers the same questions (:class:`Part`), so that plan, prechecks, switch and
verdict need not know which part it is. Pure, like the plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from ..clustermap import Map, the_machine
from ..errors import Problem
from ..meeting import Check
from ..plan import Placement, Secrets, relays
from . import auth, database, media
from .model import Ask, Steps


class Part(Protocol):
    """A part's module."""

    #: Its name, a field of :class:`saltworks.plan.Placement`.
    NAME: str
    #: Role of the machine that it moves to.
    ROLE: str
    #: Roles of the machines that run ``roles.<ROLE>.copied``, and ``copied_back`` on the way back.
    COPIES_ON: str
    COPIES_BACK_ON: str
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

        ``certificates`` and ``plugins`` (name to ...), ``service.environment``; merged.
        ``beside``: formulas that are applied before it, as :meth:`legacy` names them.
        """

    def relays(self, cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
        """Relays of the legacy machine that the part needs while it moves."""

    def steps(self, cmap: Map, placement: Placement) -> Steps:
        """What is done while Synapse stands still, there and back.

        There when the part is as found, back when it has moved.
        """

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


PARTS: Mapping[str, Part] = {part.NAME: part for part in (database, media, auth)}
"""By name, in the order in which M3 moves them."""

ROLES: Mapping[str, Part] = {part.ROLE: part for part in PARTS.values()}
"""By the role of their machine."""


def moved(placement: Placement) -> list[Part]:
    """The parts that are on machines of their own."""
    return [part for name, part in PARTS.items() if getattr(placement, name)]


def of_milestone(name: str) -> Part | None:
    """The part that a milestone such as ``m3.database`` moves, None for other milestones."""
    return PARTS.get(name.partition(".")[2])


def return_problems(name: str, cmap: Map, placement: Placement) -> list[Problem]:
    """Why a milestone's part cannot go back whatever the record says."""
    return database.no_return(cmap, placement) if of_milestone(name) is PARTS["database"] else []


def with_relays(cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
    """All relays of the legacy machine: the plan's, and those of parts on their way."""
    rows = relays(cmap, placement)
    for part in PARTS.values():
        if the_machine(cmap, part.ROLE):
            rows.update(part.relays(cmap, placement))
    return rows
