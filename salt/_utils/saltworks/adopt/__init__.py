"""Adopting a hand-made Synapse: from what was found to a cluster map, nothing dropped silently."""

from __future__ import annotations

import re

from .homeserver import AVAILABLE, judge
from .model import KINDS, Adoption, Verdict
from .report import dump_map, render

__all__ = [
    "AVAILABLE",
    "KINDS",
    "Adoption",
    "Verdict",
    "dump_map",
    "judge",
    "render",
    "requirements",
]


def requirements(text: str) -> list[str]:
    """Distributions named in a pip requirements file, for ``available_modules``.

    :param text: the file, with or without hashes and options.
    """
    names = (re.match(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)", line) for line in text.splitlines())
    return [match.group(1) for match in names if match]
