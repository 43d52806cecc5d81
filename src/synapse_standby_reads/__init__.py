"""Serves the reads of a Matrix Synapse process from PostgreSQL hot standbys, never stale.

In homeserver.yaml::

    modules:
      - module: synapse_standby_reads.StandbyReads
        config:
          standbys:
            - {host: standby-1, port: 5432}

``docs/standby-reads.md`` of Synapse Saltworks says what it promises, and when it pays.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .module import StandbyReads

__all__ = ["StandbyReads"]


def __getattr__(name: str) -> object:
    # Synapse's own modules are loaded with the class only: the pure parts need none of it.
    if name == "StandbyReads":
        from .module import StandbyReads

        return StandbyReads
    raise AttributeError(name)
