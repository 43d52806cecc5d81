"""From an invite to ``ready`` and out again, with a real master and a real minion on loopback.

The machine's own program makes its key and its settings; its worker is a little web server. The
orchestrations are the project's without the state runs, which would change this machine.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from saltworks import registry, user_data

from tests.process import house as houses
from tests.process.house import MINION, PATIENCE, SECRETS, House, sqlite_map
from tests.process.test_join import until

FAKED = Path(__file__).with_name("faked")

#: Where the plan has the machine's first process, and the main one.
PORT, MAIN = 8101, ("127.0.0.2", 8008)

#: One that has never been there.
OTHER = "sync-9"

MORE = ("redis_password", "worker_replication_secret", "pki_authority")


@pytest.fixture(scope="module")
def house(salt_factories: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    top = tmp_path_factory.mktemp("life")
    with houses.house(top, salt_factories, joins=True, faked=FAKED) as made:
        yield made


@contextlib.contextmanager
def worker(address: str = "127.0.0.1", port: int = PORT) -> Iterator[None]:
    """What answers ``/health`` as a process of Synapse does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nobody reads it."""

    class Server(http.server.ThreadingHTTPServer):
        allow_reuse_address = True

    with Server((address, port), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def state(house: House) -> tuple[str, int]:
    row = house.recorded(registry.RECORD).get("sync-2", {})
    return row.get("state", ""), row.get("generation", 0)


def machine(house: House) -> Any:
    """A minion as the user-data makes it, on a root of its own."""
    made = house.run("join.invite", "sync-2", "master=127.0.0.1")
    assert made.code == 0, made.text
    text = Path(made.data.rpartition(" ")[2]).read_text()
    files = {row["path"]: row["content"] for row in yaml.safe_load(text)["write_files"]}
    root = house.top / "machine"
    root.mkdir()
    told = root / "told.json"
    words = {**json.loads(files[user_data.TOLD]), "root": str(root), "restart": []}
    told.write_text(json.dumps(words))
    program = root / "join.py"
    program.write_text(files[user_data.PROGRAM])
    subprocess.run([sys.executable, program, told], check=True, timeout=PATIENCE)
    written = (root / "etc/salt/minion.d/saltworks-join.conf").read_text()
    settings = json.loads(written)
    assert settings.pop("id") == "sync-2"
    settings.pop("master")
    return house.master.salt_minion_daemon(
        "sync-2",
        defaults={"root_dir": str(root)},
        overrides={
            **houses.quiet("minion"),
            **settings,
            # Salt puts its root before it.
            "pki_dir": "/etc/salt/pki/minion",
            "enable_fqdns_grains": False,
        },
    )


def test_an_invited_machine_comes_into_service_leaves_and_comes_again(house: House) -> None:
    cmap = sqlite_map(house.found)
    more = {
        MINION: {**cmap["machines"][MINION], "address": MAIN[0]},
        "redis": {"role": "redis", "address": "198.18.0.16"},
        "sync-2": {"role": "worker", "kind": "sync", "address": "127.0.0.1"},
        OTHER: {"role": "worker", "kind": "sync", "address": "127.0.0.3"},
    }
    house.declare({**cmap, "machines": {**cmap["machines"], **more}})
    house.vault.put({name: f"<{name}>" for name in (*SECRETS, *MORE)})
    where = {"synapse": MINION, "front": MINION, "managed": True, "redis": "redis"}
    house.record("placement", where)
    house.ask("saltutil.sync_all")
    with worker():
        with machine(house).started(start_timeout=PATIENCE) as minion:
            until(lambda: state(house) == ("ready", 1), "sync-2 is ready, nobody typed anything")
            until(lambda: not house.run("lock.show").data["held"], "the lock is free")
            report = house.run("worker.report", "sync-2").data
            assert list(report["phases"]) == [
                "begun", "synced", "highstate", "healthy", "registered",
            ]  # fmt: skip
            assert report["total_seconds"] > 0
            (row,) = house.run("worker.list").data
            assert (row["kind"], row["address"], row["error"]) == ("sync", "127.0.0.1", "")
            assert house.run("reconcile.plan").data == [], "a second pass changes nothing"

            drained = house.run("worker.drain", "sync-2")
            assert drained.code == 0, drained.text
            until(lambda: state(house) == ("gone", 1), "it has left")
            assert house.run("reconcile.plan").data == [], "it stays out"
            house.run("worker.undrain", "sync-2")
            until(lambda: state(house) == ("ready", 2), "it is there again")

        # Its minion has died, its process serves: nothing is done about it.
        assert minion.is_running() is False
        assert house.run("reconcile.plan").data == []
    # Its process has died as well; as long as main does not answer either, it may be the front.
    assert house.run("reconcile.plan").data == []
    with worker(*MAIN):
        its_machine_dies(house)


def its_machine_dies(house: House) -> None:
    assert house.run("reconcile.plan").data == ["lose sync-2: its processes do not answer"]
    # One pass does more than one thing, and each as the master's user.
    rows = house.recorded(registry.RECORD)
    other = {**rows["sync-2"], "minion": OTHER, "address": "127.0.0.3", "key": "none"}
    house.record(registry.RECORD, {**rows, OTHER: other})
    house.run("reconcile.poke")

    until(lambda: house.run("reconcile.last").data["done"][:2] == [
        "lose of sync-2, because its processes do not answer: done",
        f"lose of {OTHER}, because its processes do not answer: done",
    ], "both are lost by one pass")  # fmt: skip
    assert state(house) == ("gone", 2)
    house.run("worker.forget", OTHER)
    assert house.run("reconcile.plan").data == [], "it does not answer, so it does not come"
    waits = {
        "sync-2": "its salt-minion does not answer",
        OTHER: "its key is not accepted: invite it, or accept its key",
    }
    until(lambda: house.run("reconcile.last").data["waits"] == waits, "and it is said why")
    assert house.run("worker.list").data[0]["waits_for"] == waits["sync-2"]
    # A telling that is cut: nothing of it can be forgotten, and a milestone's way back waits.
    house.record("told", {"sync-2": {"stop": {}, "apply": [], "changed": True}})
    house.record("milestones", {"m4.workers": {"state": "achieved"}})
    assert house.run("reconcile.plan").data == ["tell sync-2: not everybody was told of it"]
    said = "sync-2: others are being told of it, or that has failed"
    for step in (("worker.forget", "sync-2"), ("milestone.check_return", "m4.workers")):
        assert said in house.run(*step).text
    house.record("told", {})
    assert house.run("worker.forget", "sync-2").code == 0
    assert house.run("worker.list").data == []
