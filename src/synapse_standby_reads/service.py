"""The module at work in a process of Synapse's that has started."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from synapse.storage.database import DatabasePool, LoggingDatabaseConnection

from . import selfcheck
from .config import Config
from .errors import Refused
from .metrics import COLLECTOR
from .router import Router

logger = logging.getLogger(__name__)


def start(
    config: Config, databases: Sequence[DatabasePool], router: type[Router] = Router
) -> list[Router]:
    """Route the interactions of these databases.

    :raises Refused: it is not safe; with all the reasons.
    """
    release = selfcheck.release_problem(selfcheck.installed())
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
    routers = [router(database, config) for database in databases]
    for each in routers:
        each.start()
        COLLECTOR.add(each)
    return routers
