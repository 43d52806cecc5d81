"""Comes back to Redis within a second or so, however often it was lost before.

Synapse speaks to its other processes by one connection to Redis, and hears them by another. Each
time that the first is lost it waits longer before it comes again, up to ten seconds, and never goes
back to less (Twisted's ReconnectingClientFactory, whose ``resetDelay`` nobody calls for it). After
a failover of Redis that wait would be most of what users notice.
"""

from __future__ import annotations

from typing import Any

from synapse.module_api import ModuleApi
from synapse.replication.tcp import redis

#: Between two attempts at the most.
SECONDS = 1.0


class Bus:
    """The module; it has no configuration."""

    def __init__(self, config: dict[str, Any], api: ModuleApi) -> None:
        # Read anew at each attempt, so those that are connected already have it, too.
        for factory in (redis.SynapseRedisFactory, redis.RedisDirectTcpReplicationClientFactory):
            factory.maxDelay = SECONDS

    @staticmethod
    def parse_config(config: dict[str, Any]) -> dict[str, Any]:
        return config
