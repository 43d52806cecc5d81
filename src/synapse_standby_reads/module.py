"""The class that homeserver.yaml names."""

from __future__ import annotations

import sys
from typing import Any

from synapse.module_api import ModuleApi
from synapse.module_api.errors import ConfigError

from .config import Config, parse
from .errors import Refused


class StandbyReads:
    """Routes the interactions of this process.

    :raises Refused: it is not safe; with all the reasons.
    """

    def __init__(self, config: Config, api: ModuleApi) -> None:
        # Only now: Synapse silences the loggers that were there when it set up its log.
        from . import replication_gap, service

        if config.close_replication_gap:
            replication_gap.close()
        if config.reads:
            service.start(config, api._hs.get_datastores().databases)

    @staticmethod
    def parse_config(config: dict[str, Any] | None) -> Config:
        """:raises ConfigError: with every problem at once."""
        try:
            return parse(config)
        except Refused as error:
            # A worker that starts shows no more of it than which module it was.
            print(f"standby reads: {error}", file=sys.stderr)
            raise ConfigError(str(error)) from None
