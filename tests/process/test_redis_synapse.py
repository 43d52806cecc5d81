"""Synapse's own Redis client, of the real release, and a set of Redis whose master dies.

Two processes with its two connections each, and the plugin saltworks_bus.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.driver import PROJECT
from tests.process import redis_house
from tests.process.front_door import wait_for
from tests.process.redis_house import House
from tests.render import trees
from tests.render.conftest import renderer, synapse_release

__all__ = ["renderer", "synapse_release"]

pytestmark = pytest.mark.alone

BOUND_SECONDS = 15

#: Says its name ten times a second, as a command of Synapse's, and writes down whom it hears, when.
PROGRAM = """
import sys, time
from types import SimpleNamespace
from twisted.internet import defer, reactor, task
from synapse.replication.tcp import redis
from synapse.replication.tcp.commands import RemoteServerUpCommand
import saltworks_bus
name, host, port, user, password, channel = sys.argv[1:]
saltworks_bus.Bus(saltworks_bus.Bus.parse_config({}), None)
class Handler:
    connections = []
    def new_connection(self, connection):
        self.connections.append(connection)
        factory.resetDelay()
    def lost_connection(self, connection):
        if connection in self.connections:
            self.connections.remove(connection)
    def send_positions_to_connection(self): pass
    def on_REMOTE_SERVER_UP(self, connection, command):
        if command.data != name:
            print(command.data, time.monotonic(), flush=True)
class Hs:
    hostname = channel
    config = SimpleNamespace(redis=SimpleNamespace(
        redis_use_tls=False, redis_username=user, redis_password=password))
    def get_clock(self): return self
    def looping_call(self, function, duration):
        task.LoopingCall(function).start(duration.as_secs(), now=False)
    def get_reactor(self): return reactor
    def get_replication_command_handler(self): return handler
    def run_as_background_process(self, desc, function, *args, bg_start_span=True, **kwargs):
        async def run():
            try:
                return await function(*args, **kwargs)
            except Exception as error:
                print("#", desc, repr(error), file=sys.stderr, flush=True)
        return defer.ensureDeferred(run())
handler, hs = Handler(), Hs()
outbound = redis.lazyConnection(
    hs, host=host, port=int(port), username=user, password=password, reconnect=True)
factory = redis.RedisDirectTcpReplicationClientFactory(hs, outbound, channel_names=[])
reactor.connectTCP(host, int(port), factory, timeout=30)
def say():
    for connection in list(handler.connections):
        connection.send_command(RemoteServerUpCommand(name))
task.LoopingCall(say).start(0.1, now=False)
reactor.run()
"""


@pytest.fixture
def house(renderer: trees.Renderer) -> Iterator[House]:
    with redis_house.started(renderer) as house:
        yield house


def heard(house: House, name: str) -> list[float]:
    """When a process has heard the other one."""
    lines = (house.top / f"client-{name}.out").read_text().splitlines()
    return [float(line.split()[1]) for line in lines if len(line.split()) == 2]


@pytest.mark.soak
def test_synapse_s_own_client_is_back_in_time(house: House, synapse_release: Path) -> None:
    env = {"PATH": os.environ["PATH"],
           "PYTHONPATH": str(PROJECT / "formulas/synapse/files/plugins")}
    running = []
    try:
        for name in house.proxy:
            address = redis_house.inner(house.numbers[name])
            argv = [str(synapse_release / "bin/python"), "-c", PROGRAM, name, address,
                    str(house.port), *redis_house.SYNAPSE.values(), redis_house.CHANNEL]
            with (house.top / f"client-{name}.out").open("w") as out, (
                house.top / f"client-{name}.err"
            ).open("w") as err:
                running.append(subprocess.Popen(argv, stdout=out, stderr=err, env=env))
        wait_for("that they hear each other", lambda: all(map_heard(house, 0)), 60)
        for _ in range(3):
            master = house.master()
            begun = time.monotonic()
            house.redis[master].kill()
            # What was under way is heard at once.
            wait_for("them", lambda begun=begun: all(map_heard(house, begun + 1)), 60)  # type: ignore[misc]
            seconds = max(map_heard(house, begun + 1)) - begun
            print(f"killed: {seconds:.1f} s")
            assert seconds < BOUND_SECONDS
            house.redis[master].start()
            house.rest()
    finally:
        for process in running:
            process.kill()
            process.wait(10)


def map_heard(house: House, since: float) -> list[float]:
    """When each first heard the other after a moment; 0: not yet."""
    return [next((when for when in heard(house, name) if when > since), 0.0)
            for name in house.proxy]
