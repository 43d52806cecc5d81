"""A real Redis with the formula's configuration: who may do what, and how."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from saltworks import pki

from tests.process.front_door import accepts, free_ports, wait_for
from tests.render import trees
from tests.render.conftest import renderer
from tests.unit.modules.minion_modules import load

__all__ = ["renderer"]

PASSWORD = "a secret of the tests"


@dataclass(frozen=True)
class Redis:
    """One that runs.

    :param folder: what is its ``/etc/redis``.
    """

    folder: Path
    port: int

    def cli(self, *words: str, user: str = "synapse", password: str = PASSWORD) -> str:
        """What redis-cli prints."""
        done = subprocess.run(
            ["redis-cli", "-p", str(self.port), "--tls", "--cacert", f"{self.folder}/tls.authority",
             "--sni", "redis", "--user", user, "--pass", password, "--no-auth-warning", *words],
            capture_output=True, text=True, timeout=20, check=False,
        )
        return done.stdout + done.stderr

    def ping(self, **changes: Any) -> Any:
        """What the formula's state asks."""
        module: ModuleType = load("_modules", "redis_bus")
        words = {
            "name": "redis", "address": "127.0.0.1", "port": self.port, "user": "synapse",
            "password": PASSWORD, "authority": f"{self.folder}/tls.authority", "timeout": 1,
        }
        return module.ping(**{**words, **changes})


@pytest.fixture(scope="module")
def redis(renderer: trees.Renderer) -> Iterator[Redis]:
    """Started as the unit starts it, with the rendered files."""
    folder = Path(tempfile.mkdtemp(prefix="saltworks-redis-"))
    (port,) = free_ports(1)
    now = datetime.now(UTC)
    authority, authority_key = pki.make_authority("tests", now)
    crt, key = pki.issue(authority, authority_key, ["redis"], now)
    certificate = {"crt": crt, "key": key, "authority": authority}
    (path,) = [path for sls, path in trees.sls_files().items() if sls == "redis"]
    row = {"address": "127.0.0.1", "port": port, "password": PASSWORD, "channel": "lale.test",
           "certificate": certificate}
    (case,) = trees.cases_for("redis", path, {"default": {"real": {"pillar": {"redis": row}}}})
    for chunk in renderer.compile(case):
        name = str(chunk["name"])
        if chunk["fun"] != "managed" or not name.startswith("/etc/redis/"):
            continue
        if pillar := chunk.get("contents_pillar"):
            text = certificate[pillar.rpartition(":")[2]]
        else:
            text = renderer.template(case, chunk["source"], {})
        text = text.replace("/etc/redis", str(folder)).replace("/var/lib/redis", str(folder))
        (folder / Path(name).name).write_text(text.replace("supervised systemd", "supervised no"))
    process = subprocess.Popen(["redis-server", f"{folder}/redis.conf"], stdout=subprocess.DEVNULL)
    try:
        wait_for("Redis", lambda: accepts(port))
        yield Redis(folder, port)
    finally:
        process.terminate()
        process.wait(10)
        shutil.rmtree(folder)


def test_synapse_s_account_may_do_what_synapse_does(redis: Redis) -> None:
    assert redis.ping()["seconds"] < 10
    assert redis.cli("PUBLISH", "lale.test", "x").strip() == "0"
    assert redis.cli("PUBLISH", "lale.test/USER_IP", "x").strip() == "0"
    assert redis.cli("SET", "cache_v1:a:b", "1", "PX", "60000").strip() == "OK"
    assert redis.cli("GET", "cache_v1:a:b").strip() == "1"


@pytest.mark.parametrize("words", [
    ("PUBLISH", "other.test", "x"), ("GET", "other"), ("KEYS", "*"), ("CONFIG", "GET", "*"),
    ("FLUSHALL",), ("ACL", "LIST"), ("EVAL", "return 1", "0"), ("SHUTDOWN",), ("SAVE",),
    ("REPLICAOF", "127.0.0.1", "1"), ("PSUBSCRIBE", "*"),
])
def test_and_nothing_else(redis: Redis, words: tuple[str, ...]) -> None:
    assert "NOPERM" in redis.cli(*words)


def test_whether_it_is_reached_is_asked_without_its_password(redis: Redis, tmp_path: Path) -> None:
    module: ModuleType = load("_modules", "redis_bus")
    words = {"name": "redis", "address": "127.0.0.1", "port": redis.port, "timeout": 10}
    assert module.reached(**words, authority=f"{redis.folder}/tls.authority")["seconds"] < 10
    stranger = tmp_path / "stranger.pem"
    stranger.write_text(pki.make_authority("strangers", datetime.now(UTC))[0])
    with pytest.raises(CommandExecutionError, match="certificate verify failed"):
        module.reached(**words, authority=str(stranger))


def test_nobody_else_is_let_in(redis: Redis) -> None:
    assert "WRONGPASS" in redis.cli("PING", password="wrong")
    assert "WRONGPASS" in redis.cli("PING", user="default", password="")
    with pytest.raises(CommandExecutionError, match="WRONGPASS"):
        redis.ping(password="wrong")


def test_nothing_is_said_in_the_clear(redis: Redis) -> None:
    done = subprocess.run(
        ["redis-cli", "-p", str(redis.port), "PING"],
        capture_output=True, text=True, timeout=20, check=False,
    )
    assert "PONG" not in done.stdout


def test_one_with_another_certificate_is_not_taken_for_it(redis: Redis, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger.pem"
    stranger.write_text(pki.make_authority("strangers", datetime.now(UTC))[0])
    with pytest.raises(CommandExecutionError, match="certificate verify failed"):
        redis.ping(authority=str(stranger))
    with pytest.raises(CommandExecutionError, match="certificate is not valid for"):
        redis.ping(name="somebody")


def test_the_password_is_not_in_its_files(redis: Redis) -> None:
    for path in redis.folder.iterdir():
        assert PASSWORD not in path.read_text("utf-8", errors="replace")


def test_nothing_is_kept(redis: Redis) -> None:
    assert not [path for path in redis.folder.iterdir() if path.suffix in (".rdb", ".aof")]
