"""A real Synapse of main, event persister and two workers, the workers with standby reads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families
from saltworks import modules

from tests.checker.checker import Places
from tests.lab.driver import PROJECT
from tests.process.front_door import accepts, free_ports, wait_for
from tests.process.standby_servers import Servers
from tests.synapse_packages import PSYCOPG2

SECONDS = 90
MODULE = "synapse_standby_reads.StandbyReads"
NAIVE = "tests.process.naive.NaiveStandbyReads"
PLUGINS = PROJECT / "formulas/synapse/files/plugins"
#: As every process of ours has it.
PATIENCE = [{"module": modules.PATIENCE, "config": {}}]

QUICK = {"per_second": 100000, "burst_count": 100000}
SETTINGS = {
    "server_name": "lale.test", "report_stats": False, "macaroon_secret_key": "x",
    "form_secret": "x", "enable_registration": True, "suppress_key_server_warning": True,
    "enable_registration_without_verification": True, "trusted_key_servers": [],
    "bcrypt_rounds": 4, "filter_timeline_limit": 1000, "enable_metrics": True,
    "rc_message": QUICK, "rc_registration": QUICK, "rc_room_creation": QUICK,
    "rc_joins": {"local": QUICK, "remote": QUICK}, "rc_joins_per_room": QUICK,
    "rc_invites": {"per_room": QUICK},
    "rc_login": {"address": QUICK, "account": QUICK, "failed_attempts": QUICK},
    "worker_replication_secret": "x", "stream_writers": {"events": ["persister"]},
    "presence": {"enabled": False},
}
LOG = {
    "version": 1, "disable_existing_loggers": False,
    "formatters": {"plain": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"level": "INFO", "handlers": ["console"]},
    "loggers": {"synapse.access": {"level": "WARNING"}},
}
WORKERS = ("reader-1", "reader-2")


@dataclass
class Homeserver:
    """:param servers: of which all are named in its ``database.args``.
    :param ports: of each process: client, replication, metrics.
    :ivar module: that the readers have.
    :ivar modules: that all of them have."""

    folder: Path
    release: Path
    servers: Servers
    redis: int
    ports: dict[str, tuple[int, int, int]]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    module: str = ""
    modules: list[dict[str, Any]] = field(default_factory=lambda: list(PATIENCE))

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.ports[name][0]}"

    @property
    def places(self) -> Places:
        urls = [self.url(name) for name in WORKERS]
        return Places(self.url("main"), urls, urls)

    def write(self) -> None:
        """The file that all share, and each worker's."""
        every = range(len(self.servers.all))
        shared = {
            **SETTINGS,
            "database": {"name": "psycopg2", "args": {**self.servers.args(*every), "cp_max": 5}},
            "redis": {"enabled": True, "host": "127.0.0.1", "port": self.redis},
            "media_store_path": f"{self.folder}/media",
            "signing_key_path": f"{self.folder}/signing.key",
            "log_config": f"{self.folder}/log.yaml",
            "listeners": listeners(self.ports["main"]),
            "modules": self.modules,
            "instance_map": {name: {"host": "127.0.0.1", "port": self.ports[name][1]}
                             for name in ("main", "persister")},
        }
        (self.folder / "log.yaml").write_text(yaml.safe_dump(LOG))
        (self.folder / "signing.key").write_text(f"ed25519 a_abcd {'A' * 43}\n")
        (self.folder / "shared.yaml").write_text(yaml.safe_dump(shared))

    def start(self, name: str, module: str = "", **config: Any) -> None:
        """Start a process; :meth:`answers` waits for it.

        :param module: the module that it loads, with its configuration.
        """
        files = ["shared"]
        if name != "main":
            own: dict[str, Any] = {
                "worker_app": "synapse.app.generic_worker", "worker_name": name,
                "worker_listeners": listeners(self.ports[name]),
                "worker_log_config": f"{self.folder}/log.yaml",
            }
            if module:
                own["modules"] = [*self.modules, {"module": module, "config": config}]
            (self.folder / f"{name}.yaml").write_text(yaml.safe_dump(own))
            files.append(name)
        app = "homeserver" if name == "main" else "generic_worker"
        words = [word for file in files for word in ("-c", f"{self.folder}/{file}.yaml")]
        with (self.folder / f"{name}.log").open("a") as log:
            self.running[name] = subprocess.Popen(
                [str(self.release / "bin/python"), "-m", f"synapse.app.{app}", *words],
                cwd=self.folder, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"],
                     "PYTHONPATH": f"{self.folder}/lib:{PROJECT}/src:{PROJECT}:{PLUGINS}"},
            )

    def answers(self, *names: str) -> None:
        """Wait until these do."""
        for name in names:
            process, ports = self.running[name], self.ports[name]
            wait_for(
                name, lambda of=process, ports=ports: (  # type: ignore[misc]
                    of.poll() is not None or all(map(accepts, ports))), SECONDS)
            assert process.poll() is None, self.log(name)[-3000:]

    def read_by(self, module: str) -> None:
        """Both readers with a module, anew if they have another; until their standby serves."""
        anew = WORKERS if self.module != module else ()
        self.stop(*(name for name in anew if name in self.running))
        self.module = module
        for name in anew:
            self.start(
                name, module, single_statements=True, close_replication_gap=True,
                standbys=[self.servers.entry(number) for number in (0, 1)],
            )
        self.answers(*anew)
        self.ready()

    def ready(self) -> None:
        """Wait until the standby that there is serves both readers."""
        key = ("synapse_standby_reads_ready", self.servers.name(1 - self.servers.primary))
        wait_for("the standby", lambda: all(self.metrics(name)[key] == 1 for name in WORKERS), 30)

    def stop(self, *names: str) -> None:
        for name in names:
            self.running[name].terminate()
        for name in names:
            self.running.pop(name).wait(30)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def metrics(self, name: str) -> dict[tuple[str, str], float]:
        """What the module tells, by the sample's name and its one label."""
        with urllib.request.urlopen(
            f"http://127.0.0.1:{self.ports[name][2]}/_synapse/metrics", timeout=10
        ) as answer:
            text = answer.read().decode()
        return {
            (sample.name, next(iter(sample.labels.values()), "")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples if sample.name.startswith("synapse_standby_reads")
        }

    def served(self) -> dict[str, float]:
        """Interactions of both readers, by how they ended."""
        found: dict[str, float] = {}
        for name in WORKERS:
            for (sample, label), value in self.metrics(name).items():
                if sample == "synapse_standby_reads_interactions_total":
                    found[label] = found.get(label, 0) + value
        return found


def listeners(ports: tuple[int, int, int]) -> list[dict[str, Any]]:
    """HTTP for clients, replication and metrics."""
    client, replication, metrics = ports
    local = {"bind_addresses": ["127.0.0.1"]}
    return [
        {"port": client, "type": "http", "resources": [{"names": ["client"]}], **local},
        {"port": replication, "type": "http", "resources": [{"names": ["replication"]}], **local},
        {"port": metrics, "type": "metrics", **local},
    ]


@contextlib.contextmanager
def homeserver(release: Path, servers: Servers, folder: Path) -> Iterator[Homeserver]:
    """Main and persister run; the readers are for the test to start."""
    (folder / "lib").mkdir()
    (folder / "lib/psycopg2").symlink_to(PSYCOPG2)
    names = ("main", "persister", *WORKERS)
    redis, *ports = free_ports(1 + 3 * len(names))
    triples = {name: (ports[3 * n], ports[3 * n + 1], ports[3 * n + 2])
               for n, name in enumerate(names)}
    made = Homeserver(folder, release, servers, redis, triples)
    made.write()
    daemon = subprocess.Popen(
        ["redis-server", "--port", str(redis), "--bind", "127.0.0.1", "--save", ""],
        stdout=subprocess.DEVNULL, cwd=folder,
    )
    try:
        wait_for("Redis", lambda: accepts(redis))
        for name in ("main", "persister"):
            # The workers find the schema that main has made.
            made.start(name)
            made.answers(name)
        yield made
    finally:
        made.stop(*made.running)
        daemon.terminate()
        daemon.wait(10)
