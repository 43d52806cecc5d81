"""Several machines with a cache of one store: the real program, a real `rclone serve s3`."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.process import store
from tests.process.store import Site
from tests.process.test_media_store import tree

PICTURE, OTHER = "local_content/ab/cd/picture", "remote_content/far.example/ef/gh/other"
FILES = {PICTURE: os.urandom(300_000), OTHER: os.urandom(200_000)}
LONG_AGO = time.time() - 90000


@pytest.fixture
def first(tmp_path: Path) -> Iterator[Site]:
    """A machine that joined empty, beside the one that the media have moved from."""
    with store.site(tmp_path) as made:
        for path, data in FILES.items():
            made.put(path, data)
        made.run("copy")
        yield made.beside("first")


def had(site: Site, files: Mapping[str, bytes]) -> None:
    """Files, as Synapse has stored them: here, and in the store."""
    for path, data in files.items():
        site.put(path, data)
    site.upload(files)


def last(site: Site) -> store.Json:
    found: store.Json = json.loads((site.state / "pruned.json").read_text())
    return found


def test_an_empty_cache_is_pruned_and_left(first: Site) -> None:
    assert first.run("prune")["pruned"] == 0
    assert first.run("leave")["removed"] == 0
    first.media.rmdir()
    assert first.run("prune")["pruned"] == 0
    assert first.run("report")["files"] == 0
    assert tree(first.bucket) == FILES


def test_what_the_store_does_not_have_is_not_sent_and_stays(first: Site) -> None:
    had(first, {PICTURE: FILES[PICTURE]})
    first.put("local_content/zz/deleted", b"was deleted from the store")
    error = first.run("prune")["error"]
    assert "1 files are here and not in the store" in error
    assert "local_content/zz/deleted" in error
    assert "media_store.settle sends them" in error
    assert tree(first.media).keys() == {"local_content/zz/deleted"}
    assert tree(first.bucket) == FILES
    assert (last(first)["pruned"], last(first)["missing"]) == (1, 1)
    assert last(first)["error"] == error
    first.run("settle")
    assert first.run("prune")["pruned"] == 1
    assert tree(first.bucket).keys() == {*FILES, "local_content/zz/deleted"}


def test_half_a_file_goes_without_a_manifest_that_knows_the_whole(first: Site) -> None:
    first.put(PICTURE, FILES[PICTURE][:1000])
    first.put(OTHER, b"")
    assert first.run("prune")["broken"] == 2
    assert tree(first.media) == {}
    assert tree(first.bucket) == FILES


def test_what_is_not_the_beginning_of_its_object_stays(first: Site) -> None:
    first.put(PICTURE, FILES[PICTURE][1:1000])
    first.put(OTHER, FILES[OTHER] + b"more")
    error = first.run("prune")["error"]
    assert "2 files differ from their object, both are kept" in error
    assert tree(first.media).keys() == FILES.keys()
    assert tree(first.bucket) == FILES
    assert "differ" in first.run("leave")["error"]
    assert tree(first.media).keys() == FILES.keys()


def test_the_manifest_of_a_cache_tells_of_what_is_there_only(first: Site) -> None:
    had(first, {f"local_content/m/{number}": b"x" for number in range(20)})
    assert first.run("prune", "--keep-bytes=5", "--keep-seconds=99999999")["pruned"] == 15
    had(first, {PICTURE: FILES[PICTURE]})
    first.run("prune", "--keep-bytes=5", "--keep-seconds=99999999")
    assert set(first.manifest()) <= set(tree(first.media))


def test_what_a_process_has_in_use_stays(first: Site) -> None:
    had(first, {PICTURE: FILES[PICTURE]})
    with (first.media / PICTURE).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert first.run("prune")["pruned"] == 0
    assert first.run("prune")["pruned"] == 1


def test_two_machines_prune_at_once_and_no_object_is_touched(first: Site) -> None:
    second = first.beside("second")
    many = {f"local_content/{n % 7}/{n}": os.urandom(3000) for n in range(150)}
    had(first, many)
    for path, data in many.items():
        second.put(path, data)
    times = {path: os.stat(first.bucket / path).st_mtime_ns for path in many}
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda site: site.run("prune"), (first, second)))
    assert [row["pruned"] for row in done] == [150, 150]
    assert tree(first.media) == tree(second.media) == {}
    assert tree(first.bucket) == {**FILES, **many}
    assert {path: os.stat(first.bucket / path).st_mtime_ns for path in many} == times


def test_who_leaves_has_nothing_left_but_previews(first: Site) -> None:
    had(first, FILES)
    first.put("url_cache/2026-11-28/page", b"preview")
    done = first.run("leave")
    assert (done["files"], done["removed"]) == (2, 2)
    assert tree(first.media).keys() == {"url_cache/2026-11-28/page"}
    assert tree(first.bucket) == FILES
    assert first.run("leave")["files"] == 0


@pytest.mark.parametrize("sends", [False, True])
def test_who_leaves_sends_nothing_before_a_person_said_that_it_was_lost(
    first: Site, sends: bool
) -> None:
    had(first, {PICTURE: FILES[PICTURE]})
    first.put("local_content/zz/deleted", b"its machine was away when it was deleted")
    first.put("local_content/zz/lost", b"the store has lost it")
    first.sends = sends
    error = first.run("leave")["error"]
    for words in (
        "2 files are here and not in the store",
        "local_content/zz/deleted, local_content/zz/lost",
        "media_store.settle sends them, or remove them here too",
    ):
        assert words in error
    assert tree(first.media).keys() == {"local_content/zz/deleted", "local_content/zz/lost"}
    assert tree(first.bucket) == FILES
    (first.media / "local_content/zz/deleted").unlink()
    first.run("settle")
    assert first.run("leave")["removed"] == 1
    assert tree(first.media) == {}
    assert tree(first.bucket) == {**FILES, "local_content/zz/lost": b"the store has lost it"}


def test_what_is_left_of_a_fetch_goes_after_an_hour_and_before_the_machine(first: Site) -> None:
    old, young = (first.put(f"local_content/ab/.saltworks-{name}", b"ha") for name in "ab")
    other = first.put("local_content/ab/.other", b"not ours")
    for path in (old, other):
        os.utime(path, (time.time(), LONG_AGO))
    first.run("prune")
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)
    first.run("leave")
    assert (young.exists(), other.exists()) == (False, True)


def test_a_pruning_that_breaks_off_is_written_down_as_one(first: Site) -> None:
    had(first, FILES)
    first.cache = {"keep_bytes": "much", "keep_seconds": 99999999, "idle_seconds": 0}
    with pytest.raises(AssertionError, match="TypeError"):
        first.run("prune")
    assert "TypeError" in last(first)["error"]


def test_nobody_leaves_while_the_store_is_away(tmp_path: Path) -> None:
    with store.site(tmp_path) as site:
        first = site.beside("first")
        had(first, {PICTURE: FILES[PICTURE]})
    assert "does not give" in first.run("leave")["error"]
    assert tree(first.media) == {PICTURE: FILES[PICTURE]}
    error = first.run("prune")["error"]
    assert (last(first)["pruned"], last(first)["error"]) == (0, error)
    assert "does not list" in first.run("usage")["error"]


def test_the_report_says_what_there_is_and_what_was_pruned(first: Site) -> None:
    assert first.run("report")["last"] is None
    had(first, FILES)
    os.utime(first.media / PICTURE, (LONG_AGO, LONG_AGO))
    first.run("prune", "--keep-bytes=0", "--idle-seconds=3600", "--keep-seconds=99999999")
    found = first.run("report")
    assert (found["files"], found["bytes"], found["unverified"]) == (1, 200_000, 1)
    assert found["cache"] == first.cache
    assert found["free"] > 0
    assert (found["last"]["pruned"], found["last"]["bytes"]) == (1, 300_000)
    assert (found["last"]["left_bytes"], found["last"]["error"]) == (200_000, "")
    assert time.time() - found["last"]["at"] < 60
    first.run("settle")
    assert first.run("report")["unverified"] == 0
    assert store.KEYS[1] not in json.dumps(found)


def test_a_report_waits_for_no_other_run(first: Site) -> None:
    first.state.mkdir()
    with (first.state / "manifest.jsonl.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        begun = time.monotonic()
        assert first.run("report")["files"] == 0
    assert time.monotonic() - begun < 20


def test_the_objects_are_counted_by_as_few_requests_as_they_need(first: Site) -> None:
    first.upload({f"local_content/zz/{number}": b"xy" for number in range(1500)})
    first.upload({"remote_content/one": b"beside the servers"})
    found = first.run("usage")
    assert (found["objects"], found["whole"]) == (1503, True)
    assert found["bytes"] == 500_000 + 3000 + 18
    # Four folders above; of those below two with few objects, and one with 1500.
    assert found["requests"] == 4 + 2 + 2
    cut = first.run("usage", "--seconds=0")
    assert (cut["objects"], cut["whole"], cut["requests"]) == (0, False, 0)
