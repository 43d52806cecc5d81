"""The class that homeserver.yaml names."""

from __future__ import annotations

import logging
from typing import Any

from synapse.module_api import ModuleApi
from synapse.module_api.errors import ConfigError
from synapse.storage.database import DatabasePool, LoggingDatabaseConnection

from . import replication_gap, selfcheck
from .config import Config, parse
from .errors import Refused
from .metrics import COLLECTOR
from .router import Router

logger = logging.getLogger(__name__)


class StandbyReads:
    """Routes the interactions of this process, if it is safe.

    :raises Refused: it is not; with all the reasons.
    """

    router = Router

    def __init__(self, config: Config, api: ModuleApi) -> None:
        self.routers: list[Router] = []
        if config.close_replication_gap:
            replication_gap.close()
        if not config.reads:
            return
        databases = api._hs.get_datastores().databases
        self._check(config, databases)
        for database in databases:
            router = self.router(database, config)
            router.start()
            COLLECTOR.add(router)
            self.routers.append(router)

    @staticmethod
    def parse_config(config: dict[str, Any] | None) -> Config:
        """:raises ConfigError: with every problem at once."""
        try:
            return parse(config)
        except Refused as error:
            raise ConfigError(str(error)) from None

    def _check(self, config: Config, databases: list[DatabasePool]) -> None:
        release = selfcheck.release_problem(config, selfcheck.installed())
        problems = selfcheck.interface_problems(DatabasePool, LoggingDatabaseConnection)
        if release and config.unproved_release == "refuse":
            problems.append(release)
        elif release:
            logger.warning("standby reads: %s", release)
        for database in databases:
            found = selfcheck.engine_problems(database)
            problems += found or selfcheck.ask(database._database_config.config.get("args", {}))
        if problems:
            raise Refused("standby reads do not start: " + "; ".join(problems))
