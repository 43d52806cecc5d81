"""M3, part database: PostgreSQL on a machine of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..clustermap import Map
from ..errors import Problem
from ..meeting import Check
from ..plan import Placement, Secrets
from .model import Ask, Steps

NAME = "database"
ROLE = "database"
COPIES_ON = "database"
COPIES_BACK_ON = "database"
SECRETS: Mapping[str, int] = {}
KEY_PAIRS: tuple[str, ...] = ()


def idle(cmap: Map) -> str:
    """See :class:`saltworks.parts.Part`."""
    return ""


def configure(config: dict[str, Any], cmap: Map, placement: Placement) -> None:
    """See :class:`saltworks.parts.Part`."""


def machine(cmap: Map, placement: Placement, minion: str, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    return {"states": ["base"]}


def legacy(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def synapse(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def relays(cmap: Map, placement: Placement) -> dict[str, dict[str, Any]]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def steps(cmap: Map, placement: Placement) -> Steps:
    """See :class:`saltworks.parts.Part`."""
    return Steps()


def questions(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def problems(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Problem]:
    """See :class:`saltworks.parts.Part`."""
    return []


def proofs(cmap: Map, placement: Placement) -> Mapping[str, Ask]:
    """See :class:`saltworks.parts.Part`."""
    return {}


def checks(cmap: Map, placement: Placement, told: Mapping[str, Any]) -> list[Check]:
    """See :class:`saltworks.parts.Part`."""
    return []
