"""A real Synapse of several processes, started with the files that the plan makes.

The release's main process and workers, PostgreSQL, and Redis with the formula's configuration, each
where the plan says on a loopback address of its own; requests go where routing says.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from saltworks import plan, restarts, routing, synapse_config, workers
from saltworks.plan import CONFIG_DIR, DATA_DIR

from tests import cluster
from tests.lab.driver import PROJECT
from tests.process import postgres
from tests.process.front_door import wait_for
from tests.process.test_redis import PASSWORD, Redis, redis
from tests.render.conftest import renderer, synapse_release

__all__ = ["redis", "renderer", "synapse_release"]

MAIN = "127.0.0.2"
KINDS = ("client", "sync", "initial-sync", "sender", "writer", "persister", "background")
SECONDS = 120
#: Debian's, for the system's Python, of which the release's venv is made: the lock's is built from
#: source.
PSYCOPG2 = Path("/usr/lib/python3/dist-packages/psycopg2")

SETTINGS = {
    "report_stats": False,
    "macaroon_secret_key": "x",
    "enable_registration": True,
    "enable_registration_without_verification": True,
    "trusted_key_servers": [],
}
LOG = {
    "version": 1,
    "formatters": {"plain": {"format": "%(asctime)s %(name)s %(levelname)s %(message)s"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "plain"}},
    "root": {"level": "INFO", "handlers": ["console"]},
}


def listens(url: str) -> bool:
    """Whether ``/health`` is answered."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2):
            return True
    except OSError:
        return False


@dataclass
class Homeserver:
    """The processes, as the plan has them.

    :param database: as :func:`tests.process.postgres.cluster` has it.
    """

    folder: Path
    release: Path
    redis: Redis
    database: dict[str, Any]
    cmap: dict[str, Any]
    placed: plan.Placement
    running: dict[str, subprocess.Popen[bytes]]

    @property
    def plan(self) -> workers.Workers:
        return workers.of(self.placed)

    def write(self, name: str, config: Any) -> Path:
        """A configuration file, with the places of this test in it."""
        made = copy.deepcopy(config)
        if "database" in made:
            args = {"user": "synapse", "password": "secret", "database": "synapse",
                    "host": "127.0.0.1", "port": self.database["port"], "cp_min": 1, "cp_max": 3}
            made["database"] = {"name": "psycopg2", "args": args}
            if "redis" in made:
                made["redis"].update(host="127.0.0.1", port=self.redis.port)
        text = yaml.safe_dump(made).replace(CONFIG_DIR, str(self.folder))
        path = self.folder / f"{name}.yaml"
        path.write_text(text.replace(DATA_DIR, str(self.folder)))
        return path

    def secret(self, name: str) -> str:
        return PASSWORD if name == "redis_password" else name

    def start(self, name: str, app: str, url: str, *files: Path) -> None:
        """Start a process and wait until it answers."""
        plugins = str(PROJECT / "formulas/synapse/files/plugins")
        words = [word for path in files for word in ("-c", str(path))]
        with (self.folder / f"{name}.log").open("w") as log:
            self.running[name] = subprocess.Popen(
                [str(self.release / "bin/python"), "-m", f"synapse.app.{app}", *words],
                cwd=self.folder, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{plugins}:{self.folder}/lib"},
            )
        wait_for(name, lambda: self.running[name].poll() is not None or listens(url), SECONDS)
        assert listens(url), (self.folder / f"{name}.log").read_text()[-2000:]

    def start_main(self) -> None:
        config = synapse_config.homeserver_config(self.cmap, self.placed, "synapse", self.secret)
        self.start("main", "homeserver", self.main, self.write("homeserver", config))

    def start_worker(self, name: str) -> None:
        row = self.plan.processes[name]
        shared = synapse_config.worker_settings(
            self.cmap, self.placed, self.plan, self.secret, media=False
        )
        files = [
            self.write("shared", shared),
            self.write(name, workers.process_config(row, self.plan)),
        ]
        self.start(name, "generic_worker", self.url(row), *files)

    @property
    def main(self) -> str:
        return f"http://{MAIN}:{plan.PORT}"

    def url(self, row: workers.Process) -> str:
        return f"http://{row.address}:{row.port}"

    def ask(
        self, method: str, uri: str, body: Any = None, token: str = "", *, at: str = ""
    ) -> dict[str, Any]:
        """The answer of the process that routing says, which must be a good one.

        :param at: URL of another one.
        """
        to = routing.route(routing.Request(method, uri, f"Bearer {token}"), self.plan)
        base = at or (self.url(to.servers[0]) if to.servers else self.main)
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{base}{uri}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                loaded: dict[str, Any] = json.load(answer)
        except urllib.error.HTTPError as error:
            pytest.fail(f"{to.pool}: {method} {uri}: {error.code} {error.read().decode()}")
        return loaded

    def logged(self, word: str) -> list[str]:
        """Lines of all processes with a word."""
        return [line for path in self.folder.glob("*.log") for line in path.read_text().splitlines()
                if word in line]


@pytest.fixture(scope="module")
def homeserver(
    synapse_release: Path, redis: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Homeserver]:
    """Main, and a worker of each of the kinds."""
    folder = tmp_path_factory.mktemp("homeserver")
    (folder / "lib").mkdir()
    (folder / "lib/psycopg2").symlink_to(PSYCOPG2)
    (folder / "certificates").mkdir()
    (folder / "certificates/saltworks.pem").write_text((redis.folder / "tls.authority").read_text())
    (folder / "log.yaml").write_text(yaml.safe_dump(LOG))
    (folder / "signing.key").write_text(f"ed25519 a_abcd {'A' * 43}\n")
    cmap = copy.deepcopy(cluster.WORKER_MAP)
    cmap["machines"]["synapse"]["address"] = MAIN
    cmap["synapse"].update(modules=[], loopback=[], settings=SETTINGS)
    rows = [
        replace(cluster.member(f"{kind}-1", kind, number), address=f"127.0.2.{number}")
        for number, kind in enumerate(KINDS, 1)
    ]
    placed = replace(cluster.placement(*rows), media="", auth="")
    with empty_database() as database:
        made = Homeserver(folder, synapse_release, redis, database, cmap, placed, {})
        with served(made):
            yield made


@contextlib.contextmanager
def empty_database() -> Iterator[dict[str, Any]]:
    """A server with Synapse's role, and a database for it."""
    with postgres.cluster() as made:
        postgres.psql(
            made,
            "CREATE ROLE synapse LOGIN PASSWORD 'secret';\n"
            "CREATE DATABASE synapse OWNER synapse TEMPLATE template0 ENCODING 'UTF8' "
            "LC_COLLATE 'C' LC_CTYPE 'C';",
        )
        yield made


@contextlib.contextmanager
def served(made: Homeserver) -> Iterator[None]:
    """All processes of the plan run within the block."""
    try:
        made.start_main()
        for name in made.plan.processes:
            made.start_worker(name)
        yield
    finally:
        for process in made.running.values():
            process.terminate()
        for process in made.running.values():
            process.wait(30)


@dataclass(frozen=True)
class Pair:
    """Two users in a room."""

    anna: str
    bert: str
    bert_id: str
    room: str


@pytest.fixture(scope="module")
def pair(homeserver: Homeserver) -> Pair:
    def register(name: str) -> dict[str, Any]:
        body = {"auth": {"type": "m.login.dummy"}, "username": name, "password": "a long one 1"}
        return homeserver.ask("POST", "/_matrix/client/v3/register", body)

    anna, bert = register("anna"), register("bert")
    uri = "/_matrix/client/v3/createRoom"
    room = homeserver.ask("POST", uri, {"preset": "public_chat"}, anna["access_token"])["room_id"]
    homeserver.ask("POST", f"/_matrix/client/v3/join/{room}", {}, bert["access_token"])
    return Pair(anna["access_token"], bert["access_token"], bert["user_id"], room)


def bodies(answer: dict[str, Any], room: str) -> list[str]:
    events = answer["rooms"]["join"][room]["timeline"]["events"]
    return [row["content"]["body"] for row in events if row["type"] == "m.room.message"]


def send(homeserver: Homeserver, pair: Pair, text: str) -> str:
    uri = f"/_matrix/client/v3/rooms/{pair.room}/send/m.room.message/{text}"
    said = homeserver.ask("PUT", uri, {"msgtype": "m.text", "body": text}, pair.anna)
    return str(said["event_id"])


def sync(homeserver: Homeserver, pair: Pair, since: str = "", at: str = "") -> dict[str, Any]:
    query = f"?since={since}&timeout=10000" if since else ""
    return homeserver.ask("GET", f"/_matrix/client/v3/sync{query}", None, pair.bert, at=at)


def test_what_is_written_at_one_process_is_read_at_another(
    homeserver: Homeserver, pair: Pair
) -> None:
    since = sync(homeserver, pair)["next_batch"]
    event = send(homeserver, pair, "one")
    got = sync(homeserver, pair, since)
    assert bodies(got, pair.room) == ["one"]
    room, user = f"/_matrix/client/v3/rooms/{pair.room}", f"/_matrix/client/v3/user/{pair.bert_id}"
    since = got["next_batch"]
    ask = homeserver.ask
    ask("PUT", f"{room}/typing/@anna:lale.test", {"typing": True, "timeout": 60000}, pair.anna)
    ask("POST", f"{room}/receipt/m.read/{event}", {}, pair.bert)
    to = {"messages": {pair.bert_id: {"*": {"n": 1}}}}
    ask("PUT", "/_matrix/client/v3/sendToDevice/org.x/1", to, pair.anna)
    ask("PUT", f"{user}/account_data/org.x", {"n": 1}, pair.bert)
    rule = {"pattern": "x", "actions": ["notify"]}
    ask("PUT", "/_matrix/client/v3/pushrules/global/content/x", rule, pair.bert)
    ask("POST", "/_matrix/client/v3/keys/upload", {}, pair.bert)
    presence = f"/_matrix/client/v3/presence/{pair.bert_id}/status"
    ask("PUT", presence, {"presence": "online"}, pair.bert)
    wanted = {"m.typing", "m.receipt", "org.x", "m.push_rules", "to-device"}
    seen: set[str] = set()

    def has_all() -> bool:
        nonlocal since
        got = sync(homeserver, pair, since)
        since = got["next_batch"]
        joined = got.get("rooms", {}).get("join", {}).get(pair.room, {})
        seen.update(row["type"] for row in joined.get("ephemeral", {}).get("events", []))
        seen.update(row["type"] for row in got.get("account_data", {}).get("events", []))
        seen.update("to-device" for _ in got.get("to_device", {}).get("events", []))
        return seen >= wanted

    wait_for(f"{wanted}", has_all, SECONDS)


def test_a_new_worker_serves_and_nobody_else_is_restarted(
    homeserver: Homeserver, pair: Pair
) -> None:
    since = sync(homeserver, pair)["next_batch"]
    pids = {name: process.pid for name, process in homeserver.running.items()}
    before = homeserver.placed
    new = replace(cluster.member("sync-2", "sync", 50), address="127.0.2.50")
    homeserver.placed = replace(before, members=(*before.members, new))
    assert restarts.steps(homeserver.cmap, before, homeserver.placed) == ()
    homeserver.start_worker("sync-2-1")
    send(homeserver, pair, "two")
    at = homeserver.url(homeserver.plan.processes["sync-2-1"])
    # The first sync may be one that Synapse kept from the test before.
    assert bodies(sync(homeserver, pair, since, at), pair.room)[-1] == "two"
    assert {name: homeserver.running[name].pid for name in pids} == pids
    assert all(process.poll() is None for process in homeserver.running.values())


def test_no_process_met_an_error_and_redis_refused_none_of_them(
    homeserver: Homeserver, pair: Pair
) -> None:
    assert [*homeserver.logged(" ERROR "), *homeserver.logged("NOPERM")] == []
    assert pair.room


def test_a_second_writer_takes_streams_over_by_the_steps_of_the_plan(
    homeserver: Homeserver, pair: Pair
) -> None:
    before = homeserver.placed
    new = replace(cluster.member("writer-2", "writer", 60), address="127.0.2.60")
    joining = replace(before, members=(*before.members, replace(new, state="joining")))
    ready = replace(before, members=(*before.members, new))
    # It runs, without a duty, before anybody is told of it.
    homeserver.placed = joining
    homeserver.start_worker("writer-2-1")
    homeserver.placed = ready
    moved = [name for name, names in homeserver.plan.streams.items() if "writer-2-1" in names]
    assert moved
    steps = restarts.steps(homeserver.cmap, joining, ready)
    assert {unit.service for step in steps for unit in step.units} == {
        "synapse", *(f"synapse-worker@{name}" for name in homeserver.plan.processes),
    }
    for step in steps:
        names = [unit.service.rpartition("@")[2] for unit in step.units]
        if step.action in ("stop", "restart"):
            for name in names:
                homeserver.running["main" if name == "synapse" else name].terminate()
            for name in names:
                homeserver.running["main" if name == "synapse" else name].wait(30)
        if step.action in ("start", "restart"):
            for name in names:
                if name == "synapse":
                    homeserver.start_main()
                else:
                    homeserver.start_worker(name)
    room = f"/_matrix/client/v3/rooms/{pair.room}"
    event = send(homeserver, pair, "three")
    # Each of these is answered 500 by whoever is not its writer.
    typing = {"typing": True, "timeout": 60000}
    homeserver.ask("PUT", f"{room}/typing/@anna:lale.test", typing, pair.anna)
    for row in homeserver.plan.pools["receipts"]:
        uri = f"{room}/receipt/m.read/{event}"
        homeserver.ask("POST", uri, {}, pair.bert, at=homeserver.url(row))
    to = {"messages": {pair.bert_id: {"*": {"n": 2}}}}
    homeserver.ask("PUT", "/_matrix/client/v3/sendToDevice/org.x/2", to, pair.anna)
    rule = {"pattern": "y", "actions": ["notify"]}
    homeserver.ask("PUT", "/_matrix/client/v3/pushrules/global/content/y", rule, pair.bert)


def test_main_alone_goes_on_once_all_workers_are_gone_and_redis_after_them(
    homeserver: Homeserver, pair: Pair
) -> None:
    """The way back of M4.workers, and the way there once more, each a restart of main."""
    since = sync(homeserver, pair)["next_batch"]
    gone = [name for name in homeserver.running if name != "main"]
    for name in gone:
        homeserver.running[name].terminate()
    for name in gone:
        homeserver.running.pop(name).wait(30)
    with_redis = replace(homeserver.placed, members=())
    for number, placed in enumerate((with_redis, replace(with_redis, redis=""), with_redis)):
        homeserver.placed = placed
        homeserver.running["main"].terminate()
        homeserver.running["main"].wait(30)
        homeserver.start_main()
        event = send(homeserver, pair, f"alone-{number}")
        got = sync(homeserver, pair, since)
        since = got["next_batch"]
        assert bodies(got, pair.room)[-1] == f"alone-{number}"
        room = f"/_matrix/client/v3/rooms/{pair.room}"
        homeserver.ask("POST", f"{room}/receipt/m.read/{event}", {}, pair.bert)
        to = {"messages": {pair.bert_id: {"*": {"n": 3}}}}
        homeserver.ask("PUT", f"/_matrix/client/v3/sendToDevice/org.x/a{number}", to, pair.anna)
