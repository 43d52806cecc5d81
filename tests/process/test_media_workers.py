"""Two media workers on machines of their own: each has a cache, and both the one store.

The release's real main process and workers as the plan configures them, with the formula's
provider, program and a real `rclone serve s3`; a media folder for each machine.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import pytest
import yaml
from saltworks import media_report, synapse_config, workers

from tests import cluster
from tests.lab.driver import PROJECT
from tests.lab.seed_media import png
from tests.process import store
from tests.process.store import Site
from tests.process.test_redis import Redis, redis
from tests.process.test_synapse_workers import (
    LOG,
    MAIN,
    PSYCOPG2,
    SETTINGS,
    Homeserver,
    empty_database,
    served,
)
from tests.render.conftest import renderer, synapse_release

__all__ = ["redis", "renderer", "synapse_release"]

FILES = PROJECT / "formulas/media/files"
A, B = "media-1", "media-2"
SERVER = cluster.WORKER_MAP["server_name"]
PICTURES = [png(320, 240, seed) for seed in range(6)]
#: For how long prunings and downloads cross each other, in seconds.
CROSSING_SECONDS = 12
#: Mostly what is not in the cache yet is asked for.
SIZES = itertools.count(40)


@dataclass
class Media(Homeserver):
    """Main, and two media workers with a folder each.

    :param site: the store, and main's folder.
    """

    site: Site

    def secret(self, name: str) -> str:
        keys = {"media_access_key": store.KEYS[0], "media_secret_key": store.KEYS[1]}
        return keys.get(name) or super().secret(name)

    def start_worker(self, name: str) -> None:
        row = self.plan.processes[name]
        shared = synapse_config.worker_settings(
            self.cmap, self.placed, self.plan, self.secret, media=True
        )
        (provider,) = shared["media_storage_providers"]
        provider["config"]["endpoint_url"] = f"http://127.0.0.1:{self.site.port}"
        shared["media_store_path"] = str(self.cache(row.machine).media)
        files = [
            self.write(f"shared-{row.machine}", shared),
            self.write(name, workers.process_config(row, self.plan)),
        ]
        self.start(name, "generic_worker", self.url(row), *files)

    def cache(self, machine: str) -> Site:
        """A machine's cache, as its slice has it."""
        return replace(self.site, name=machine, counts="store", sends=False)

    def at(self, machine: str) -> str:
        return self.url(self.plan.processes[f"{machine}-1"])


@pytest.fixture(scope="module")
def media(
    synapse_release: Path, redis: Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Media]:
    folder = tmp_path_factory.mktemp("media")
    (folder / "lib").mkdir()
    (folder / "lib/psycopg2").symlink_to(PSYCOPG2)
    for name in ("provider", "local", "tls"):
        file = f"saltworks_media_{name}.py"
        (folder / "lib" / file).symlink_to(FILES / file)
    (folder / "certificates").mkdir()
    (folder / "certificates/saltworks.pem").write_text((redis.folder / "tls.authority").read_text())
    (folder / "log.yaml").write_text(yaml.safe_dump(LOG))
    (folder / "signing.key").write_text(f"ed25519 a_abcd {'A' * 43}\n")
    cmap = copy.deepcopy(cluster.WORKER_MAP)
    cmap["machines"]["synapse"]["address"] = MAIN
    settings = {**SETTINGS, "dynamic_thumbnails": True, "max_upload_size": "50M"}
    cmap["synapse"].update(modules=[], loopback=[], settings=settings)
    rows = [
        replace(cluster.member(name, "media", number), address=f"127.0.3.{number}")
        for number, name in enumerate((A, B), 1)
    ]
    placed = replace(cluster.placement(*rows), media="storage", auth="")
    with empty_database() as database, store.site(folder) as site:
        made = Media(folder, synapse_release, redis, database, cmap, placed, {}, site)
        with served(made):
            yield made


@dataclass(frozen=True)
class User:
    """Somebody with pictures."""

    token: str

    def asks(self, url: str, data: bytes | None = None) -> tuple[int, bytes]:
        """Status and body; an answer that is cut off is status 0."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "image/png"}
        request = urllib.request.Request(url, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except (OSError, HTTPException) as error:
            return 0, str(error).encode()

    def upload(self, at: str, data: bytes) -> str:
        """The picture's id."""
        status, body = self.asks(f"{at}/_matrix/media/v3/upload?filename=picture.png", data)
        assert status == 200, body
        return str(json.loads(body)["content_uri"]).rpartition("/")[2]

    def download(self, at: str, name: str) -> tuple[int, bytes]:
        return self.asks(f"{at}/_matrix/client/v1/media/download/{SERVER}/{name}")

    def thumbnail(self, at: str, name: str, size: int) -> tuple[int, bytes]:
        query = f"width={size}&height={size}&method=scale"
        return self.asks(f"{at}/_matrix/client/v1/media/thumbnail/{SERVER}/{name}?{query}")


@pytest.fixture(scope="module")
def user(media: Media) -> User:
    body = {"auth": {"type": "m.login.dummy"}, "username": "anna", "password": "a long one 1"}
    found = media.ask("POST", "/_matrix/client/v3/register", body)
    return User(found["access_token"])


def path_of(name: str) -> str:
    return f"local_content/{name[:2]}/{name[2:4]}/{name[4:]}"


def held(site: Site) -> set[str]:
    """Media files of a machine."""
    return {str(path.relative_to(site.media)) for path in site.media.rglob("*") if path.is_file()}


def test_what_one_has_stored_the_other_serves_and_a_pruned_cache_serves_it_again(
    media: Media, user: User
) -> None:
    a, b = media.cache(A), media.cache(B)
    name = user.upload(media.at(A), PICTURES[0])
    assert (a.bucket / path_of(name)).read_bytes() == PICTURES[0], "before it was answered"
    assert path_of(name) in held(a)
    assert held(b) == set()
    assert user.download(media.at(B), name) == (200, PICTURES[0])
    status, small = user.thumbnail(media.at(B), name, 96)
    assert (status, small[:8]) == (200, PICTURES[0][:8])
    # It was made there, of the whole picture; and is in the store for the others.
    assert path_of(name) in held(b)
    assert any(file.startswith("local_thumbnails/") for file in held(b))
    # The system does not write down a use that is younger than what stands there, within a day.
    later = time.time() + 3600
    os.utime(a.media / path_of(name), (later, later - 9000))
    assert user.download(media.at(A), name) == (200, PICTURES[0])
    now = os.stat(a.media / path_of(name))
    assert abs(now.st_atime - time.time()) < 60
    assert now.st_mtime == pytest.approx(later - 9000)
    assert a.run("prune")["pruned"] > 0
    assert held(a) == set()
    assert user.download(media.at(A), name) == (200, PICTURES[0])
    assert user.thumbnail(media.at(A), name, 96) == (200, small)


def test_prunings_and_downloads_cross_each_other_and_nobody_sees_it(
    media: Media, user: User
) -> None:
    names = [user.upload(media.at(A), data) for data in PICTURES]
    wanted = dict(zip(names, PICTURES, strict=True))
    wrong: list[tuple[str, int, bytes]] = []
    end = threading.Event()
    pruned = downloads = thumbnails = 0

    def prunes(machine: str) -> None:
        nonlocal pruned
        while not end.is_set():
            done = media.cache(machine).run("prune")
            # Of an upload that is on its way there is a file, and no object yet.
            assert "pruned" in done or "not in the store" in done["error"], done
            pruned += done.get("pruned", 0)

    def reads(machine: str) -> None:
        nonlocal downloads, thumbnails
        for name in itertools.cycle(names):
            if end.is_set():
                return
            status, body = user.download(media.at(machine), name)
            if (status, body) != (200, wanted[name]):
                wrong.append(("download", status, body[:300]))
            downloads += 1
            status, body = user.thumbnail(media.at(machine), name, next(SIZES))
            if status != 200 or not body.startswith(PICTURES[0][:8]):
                wrong.append(("thumbnail", status, body[:300]))
            thumbnails += 1

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(prunes, machine) for machine in (A, B)]
        jobs += [pool.submit(reads, machine) for machine in (A, A, B, B)]
        time.sleep(CROSSING_SECONDS)
        end.set()
        for job in jobs:
            job.result()
    assert wrong == []
    assert pruned > 20
    assert min(downloads, thumbnails) > 20
    assert media.logged(" ERROR ") == []


def test_the_status_tells_what_there_is(media: Media, user: User) -> None:
    """As the runner makes it of the machines' answers; what systemd says is put in."""
    user.upload(media.at(A), PICTURES[0])
    time.sleep(1.1)
    media.cache(B).run("prune", "--idle-seconds=1")
    rows = {
        name: {**media.cache(name).run("report"), "timer": "active", "service": "success"}
        for name in (A, B)
    }
    usage = {**media.cache(A).run("usage"), "asked": A}
    shown = media_report.table("storage", rows, usage, True, time.time())
    print(yaml.safe_dump(dict(shown), sort_keys=False))
    objects = [path.stat().st_size for path in media.site.bucket.rglob("*") if path.is_file()]
    assert (shown["store"]["objects"], shown["store"]["bytes"]) == (len(objects), sum(objects))
    assert shown["store"]["whole"] is True
    assert shown["caches"][A]["files"] == len(held(media.cache(A))) > 0
    assert shown["caches"][B]["files"] == 0
    assert shown["caches"][B]["last_prune"]["error"] == ""


def test_a_machine_that_leaves_takes_nothing_with_it(media: Media, user: User) -> None:
    names = {user.upload(media.at(A), data): data for data in PICTURES[:3]}
    media.running[f"{A}-1"].terminate()
    media.running.pop(f"{A}-1").wait(30)
    a = media.cache(A)
    only = next(iter(names))
    a.lose(path_of(only))
    assert user.download(media.at(B), only)[0] == 404
    error = a.run("leave")["error"]
    assert "1 files are here and not in the store" in error
    assert f"{path_of(only)}; media_store.settle sends them, or remove them here too" in error
    assert held(a) == {path_of(only)}
    assert a.run("settle")["copied"] == 1
    assert a.run("leave")["removed"] == 1
    assert held(a) == set()
    for name, data in names.items():
        assert user.download(media.at(B), name) == (200, data)


SCRIPT = """
import asyncio, contextlib, os, sys, tempfile, types
from twisted.internet import defer, task
import saltworks_media_local as local
from synapse.api.errors import NotFoundError
from synapse.media.media_storage import MediaStorage
from synapse.util.clock import Clock

local.take_over()
local.take_over()
folder = tempfile.mkdtemp()
path = os.path.join(folder, "a/b")
events = []


class Goes:
    "A local folder whose file goes after it was looked for, so often."
    def __init__(self, times): self.times = times
    async def fetch(self, path, info):
        self.times -= 1
        if self.times >= 0: raise FileNotFoundError(path)


class Found:
    def __enter__(self): return self
    def __exit__(self, *_): pass
    async def write_to_consumer(self, consumer):
        consumer.registerProducer(self, True)
        consumer.write(b"first half, ")
        named = [name.startswith(local.PARTIAL) for name in os.listdir(os.path.dirname(path))]
        events.append(("half", os.path.exists(path), named))
        if "breaks" in events: consumer.unregisterProducer(); raise OSError("cut")
        consumer.write(b"second half")
        consumer.unregisterProducer()
    def resumeProducing(self): pass
    def pauseProducing(self): pass


class Store:
    async def fetch(self, path, info): return Found()


def storage(times=0, providers=None):
    from twisted.internet import reactor
    made = object.__new__(MediaStorage)
    made.reactor, made.storage_providers = reactor, providers or [Store()]
    made.clock = Clock(reactor, server_name="chat.lale.test")
    made.local_provider, made.local_media_directory = Goes(times), folder
    made._file_info_to_path = lambda info: "a/b"
    return made


info = types.SimpleNamespace(url_cache=False, thumbnail=None, server_name=None, file_id="x")


async def main():
    assert isinstance(await storage(2).fetch_media(info), Found)
    async with storage().ensure_media_is_in_local_cache(info) as found:
        assert found == path and open(path).read() == "first half, second half"
        import fcntl
        with open(path) as other:
            try: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError: events.append("held")
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Who prunes has it now: it will be gone.
        try:
            async with storage().ensure_media_is_in_local_cache(info): pass
        except NotFoundError: events.append("not while it goes")
    with open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # It takes its time.
        from twisted.internet import reactor
        reactor.callLater(0.3, os.unlink, path)
        async with storage().ensure_media_is_in_local_cache(info): events.append("anew")
    os.unlink(path)
    events.append("breaks")
    try:
        async with storage().ensure_media_is_in_local_cache(info): pass
    except OSError: events.append(("left", os.listdir(os.path.dirname(path))))
    print(events)


task.react(lambda reactor: defer.ensureDeferred(main()))
"""


def test_a_file_that_goes_between_look_and_open_is_no_error_and_none_is_seen_in_part(
    synapse_release: Path,
) -> None:
    done = subprocess.run(
        [str(synapse_release / "bin/python"), "-c", SCRIPT],
        env={"PYTHONPATH": str(FILES), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 0, done.stderr
    half = ("half", False, [True])
    assert done.stdout.strip() == str([
        half, "held", "not while it goes", half, "anew", "breaks", half, ("left", []),
    ])  # fmt: skip
