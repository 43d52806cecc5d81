"""The media tree and its store, with the real program against a real `rclone serve s3`."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process import store
from tests.process.store import Site

PICTURE = "local_content/ab/cd/picture"
THUMBNAIL = "local_thumbnails/ab/cd/picture/32-32-image-png-crop"
REMOTE = "remote_content/other.example/ef/gh/picture"
OLD_THUMBNAIL = "remote_thumbnail/other.example/ef/gh/picture/32-32-image-png"
PREVIEW = "url_cache/2026-11-26/page"
FILES = {
    PICTURE: os.urandom(300_000),
    THUMBNAIL: b"small",
    REMOTE: os.urandom(200_000),
    OLD_THUMBNAIL: b"",
    PREVIEW: b"preview",
    "local_content/ab/.half": b"not Synapse's",
}
MEDIA = {PICTURE, THUMBNAIL, REMOTE, OLD_THUMBNAIL}


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with store.site(tmp_path) as made:
        for path, data in FILES.items():
            made.put(path, data)
        yield made


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def moved(site: Site) -> None:
    """The media have moved."""
    assert site.run("copy")["copied"] == len(MEDIA)
    site.hash()
    assert site.run("compare")["disk"] == len(MEDIA)
    site.counts = "store"


def test_what_the_provider_stores_is_copied_and_nothing_else(site: Site) -> None:
    done = site.run("copy")
    assert (done["files"], done["copied"], done["vanished"]) == (4, 4, 0)
    assert tree(site.bucket) == {path: FILES[path] for path in MEDIA}
    assert site.run("copy")["copied"] == 0


def test_every_file_is_compared_with_the_hash_of_the_disk(site: Site) -> None:
    site.run("copy")
    assert site.hash()["files"] == 4
    done = site.run("compare")
    assert (done["files"], done["disk"], done["read"], done["copied"]) == (4, 4, 0, 0)
    assert {row["verified"] for row in site.manifest().values()} == {"disk"}
    assert site.manifest().keys() == MEDIA
    assert site.hash()["read"] == 0


def test_rotten_bytes_on_the_disk_are_found_and_mended(site: Site) -> None:
    site.run("copy")
    (site.bucket / PICTURE).write_bytes(FILES[PICTURE][:-1] + b"!")
    site.hash()
    done = site.run("compare")
    assert (done["disk"], done["read"], done["copied"]) == (3, 1, 1)
    assert (site.bucket / PICTURE).read_bytes() == FILES[PICTURE]


def test_in_the_window_only_what_came_since_is_sent_and_it_is_read_back(site: Site) -> None:
    site.run("copy")
    site.hash()
    site.run("compare")
    site.put("local_content/zz/late", b"late")
    site.put(THUMBNAIL, b"made anew")
    (site.media / REMOTE).unlink()
    done = site.run("settle")
    assert (done["files"], done["copied"], done["read"]) == (4, 2, 2)
    assert (site.bucket / THUMBNAIL).read_bytes() == b"made anew"
    assert site.manifest()["local_content/zz/late"]["verified"] == "read"


def test_a_file_that_changes_while_it_is_read_is_never_called_equal(site: Site) -> None:
    # So large that its writer gets a turn while it is read, however busy this host is.
    path = site.put("local_content/xx/changing", bytes(60_000_000))
    stop = threading.Event()

    def change() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"x")
                time.sleep(0.001)

    writer = threading.Thread(target=change)
    writer.start()
    try:
        done = site.run("copy")
        site.hash()
        refused = site.run("compare")
    finally:
        stop.set()
        writer.join()
    assert done["unreadable"] == ["local_content/xx/changing (changes)"]
    assert "local_content/xx/changing (changes)" in refused["error"]
    site.hash()
    assert site.run("compare")["files"] == 5
    stored = (site.bucket / "local_content/xx/changing").read_bytes()
    assert stored == path.read_bytes()


def test_a_file_that_goes_meanwhile_is_counted(site: Site) -> None:
    stop = threading.Event()

    def come_and_go() -> None:
        while not stop.is_set():
            paths = [site.put(f"local_content/go/{n}", b"x" * 100) for n in range(300)]
            for path in paths:
                path.unlink()

    worker = threading.Thread(target=come_and_go)
    worker.start()
    try:
        vanished = 0
        for _ in range(20):
            vanished += site.run("copy")["vanished"]
            if vanished:
                break
    finally:
        stop.set()
        worker.join()
    assert vanished > 0
    site.hash()
    done = site.run("compare")
    assert done["files"] == done["disk"] + done["read"]


def test_a_full_disk_is_said_and_the_next_run_goes_on(site: Site) -> None:
    mount = site.bucket
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(mount)], check=True)
    try:
        for number in range(8):
            site.put(f"local_content/big/{number}", os.urandom(1_000_000))
        refused = site.run("copy")["error"]
        for words in ("does not take local_content/big/", "disk full", "not sent again"):
            assert words in refused
        before = len(site.manifest())
        assert before > 4
        subprocess.run(["mount", "-o", "remount,size=64m", str(mount)], check=True)
        done = site.run("copy")
        assert done["copied"] == 12 - before
        site.hash()
        assert site.run("compare")["disk"] == 12
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_a_large_file_goes_in_parts(site: Site) -> None:
    data = os.urandom(40_000_000)
    site.put("local_content/la/rge", data)
    site.run("copy")
    assert (site.bucket / "local_content/la/rge").read_bytes() == data
    site.hash()
    assert site.run("compare")["disk"] == 5


def test_a_store_that_is_away_is_said(tmp_path: Path) -> None:
    with store.site(tmp_path) as site:
        site.put(PICTURE, b"x")
    begun = time.monotonic()
    assert f"127.0.0.1:{site.port} does not" in site.run("settle")["error"]
    assert time.monotonic() - begun < 30


def test_pruned_is_what_the_store_has_and_the_rest_is_sent_first(site: Site) -> None:
    moved(site)
    site.put("local_content/zz/new", b"new")
    done = site.run("prune")
    assert (done["pruned"], done["broken"]) == (4, 0)
    assert tree(site.media).keys() == {PREVIEW, "local_content/ab/.half", "local_content/zz/new"}
    assert (site.bucket / "local_content/zz/new").read_bytes() == b"new"
    assert site.run("prune")["pruned"] == 1


def test_a_file_whose_object_is_not_the_same_stays(site: Site) -> None:
    moved(site)
    rotten = FILES[PICTURE][:-1] + b"!"
    (site.bucket / PICTURE).write_bytes(rotten)
    refused = site.run("prune")["error"]
    assert f"1 files differ from their object, both are kept: {PICTURE}" in refused
    assert (site.media / PICTURE).read_bytes() == FILES[PICTURE]
    assert (site.bucket / PICTURE).read_bytes() == rotten


def test_half_a_file_in_the_cache_goes_and_never_reaches_the_store(site: Site) -> None:
    moved(site)
    site.put(PICTURE, FILES[PICTURE][:1000])
    site.hash()
    assert site.run("compare")["broken"] == 1
    assert (site.bucket / PICTURE).read_bytes() == FILES[PICTURE]
    assert not (site.media / PICTURE).exists()


def test_what_is_used_stays_and_reading_for_a_comparison_is_no_use(site: Site) -> None:
    moved(site)
    long_ago = time.time() - 5000
    for path in MEDIA:
        os.utime(site.media / path, (long_ago, (site.media / path).stat().st_mtime))
    used = {path: (site.media / path).stat().st_atime for path in MEDIA}
    site.run("copy")
    assert {path: (site.media / path).stat().st_atime for path in MEDIA} == used
    assert site.run("prune", "--idle-seconds=3600")["pruned"] == 0
    for path in (PICTURE, REMOTE):
        os.utime(site.media / path, (long_ago, long_ago))
    # One is enough to be below what may stay.
    done = site.run("prune", "--idle-seconds=3600", "--keep-bytes=350000", "--keep-seconds=9999")
    assert (done["pruned"], (site.media / PICTURE).exists()) == (1, False)


def test_the_way_back_brings_every_object_home(site: Site) -> None:
    moved(site)
    site.run("prune")
    site.hash()
    done = site.run("back")
    assert (done["objects"], done["fetched"], done["files"]) == (4, 4, 4)
    assert {path: data for path, data in tree(site.media).items() if path in MEDIA} == {
        path: FILES[path] for path in MEDIA
    }
    assert site.run("back")["fetched"] == 0


def test_the_way_back_refuses_what_is_not_what_the_disk_had(site: Site) -> None:
    moved(site)
    site.run("prune")
    site.hash()
    (site.bucket / REMOTE).write_bytes(b"!" + FILES[REMOTE][1:])
    refused = site.run("back")["error"]
    assert f"1 objects are not what the storage machine's disk has: {REMOTE}" in refused
    assert not (site.media / REMOTE).exists()
    assert (site.media / PICTURE).read_bytes() == FILES[PICTURE]


def test_a_manifest_with_half_a_line_is_read(site: Site) -> None:
    site.run("copy")
    path = site.top / "state" / "manifest.jsonl"
    path.write_text(path.read_text()[:-20])
    assert site.run("copy")["copied"] == 1
    assert site.run("copy")["copied"] == 0
