"""The plugin saltworks_bus in the real release: how long its connections to Redis wait."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.lab.driver import PROJECT
from tests.render.conftest import synapse_release

__all__ = ["synapse_release"]

#: Loses a connection of each kind eight times, and prints how long each wait is.
PROGRAM = """
import json, sys
from twisted.internet.task import Clock
from synapse.replication.tcp import redis
if sys.argv[1] == "plugin":
    import saltworks_bus
    saltworks_bus.Bus(saltworks_bus.Bus.parse_config({}), None)
class Hs:
    hostname = "example.org"
    def get_clock(self): return self
    def looping_call(self, *args): pass
class Connector:
    def connect(self): pass
    def getDestination(self): return "redis"
waits = {}
for kind in (redis.SynapseRedisFactory, redis.RedisDirectTcpReplicationClientFactory):
    factory = redis.SynapseRedisFactory(Hs(), uuid="x", dbid=None, poolsize=1)
    factory.__class__ = kind
    factory.jitter = 0
    seen = []
    for _ in range(8):
        factory.clock = Clock()
        factory.clientConnectionLost(Connector(), type("Why", (), {"value": ""}))
        seen.append(factory._callID.getTime())
        factory.clock.advance(100)
    waits[kind.__name__] = seen
print(json.dumps(waits))
"""


def waits(release: Path, word: str) -> dict[str, list[float]]:
    done = subprocess.run(
        [str(release / "bin/python"), "-c", PROGRAM, word],
        env={"PATH": os.environ["PATH"],
             "PYTHONPATH": str(PROJECT / "formulas/synapse/files/plugins")},
        capture_output=True, text=True, timeout=120, check=False,
    )
    assert done.returncode == 0, done.stderr
    made: dict[str, list[float]] = json.loads(done.stdout)
    return made


def test_without_it_what_speaks_waits_for_ten_seconds(synapse_release: Path) -> None:
    """Once a release does not, the plugin is for nothing."""
    seen = waits(synapse_release, "stock")
    assert max(seen["SynapseRedisFactory"]) == 10
    assert max(seen["RedisDirectTcpReplicationClientFactory"]) == 5


def test_with_it_both_are_back_soon(synapse_release: Path) -> None:
    seen = waits(synapse_release, "plugin")
    assert {name: max(rows) for name, rows in seen.items()} == dict.fromkeys(seen, 1)
    assert len(seen) == 2
