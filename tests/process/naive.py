"""Standby reads without barrier and fence, to see that the checks catch it. For tests only."""

from __future__ import annotations

from synapse.module_api import ModuleApi

from synapse_standby_reads import service
from synapse_standby_reads.config import Config
from synapse_standby_reads.fence import Position
from synapse_standby_reads.module import StandbyReads
from synapse_standby_reads.read_index import ReadIndex
from synapse_standby_reads.router import Router


class NaiveIndex(ReadIndex):
    """Says that whatever a standby has is enough."""

    def get(self) -> Position:
        return Position(0, self.timeline, 1 << 62, 1 << 62, ())


class NaiveRouter(Router):
    """Its standbys compare with it as always."""

    read_index = NaiveIndex


class NaiveStandbyReads(StandbyReads):
    """As the module, with that router."""

    def __init__(self, config: Config, api: ModuleApi) -> None:
        service.start(config, api._hs.get_datastores().databases, NaiveRouter)
