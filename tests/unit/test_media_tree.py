"""What is decided about media files: sent, the same, fetched, pruned."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

PATH = Path(__file__).parents[2] / "formulas/media/files/saltworks_media_tree.py"
SPEC = importlib.util.spec_from_file_location("saltworks_media_tree", PATH)
assert SPEC is not None
assert SPEC.loader is not None
tree: Any = importlib.util.module_from_spec(SPEC)
# Its dataclasses look themselves up there.
sys.modules["saltworks_media_tree"] = tree
SPEC.loader.exec_module(tree)


def file(size: int = 1, mtime: int = 5, used: float = 0) -> Any:
    return tree.File(size, mtime, used)


def entry(size: int = 1, mtime: int = 5, sha256: str = "a", verified: str = "") -> Any:
    return tree.Entry(size, mtime, sha256, verified)


def stored(size: int = 1, sha256: str = "a") -> Any:
    return tree.Stored(size, sha256)


def test_what_is_new_or_has_changed_is_sent() -> None:
    local = {"same": file(), "new": file(), "longer": file(size=2), "later": file(mtime=6)}
    known = {"same": entry(), "longer": entry(), "later": entry(), "gone": entry()}
    assert tree.to_copy(local, known) == ["later", "longer", "new"]


def test_the_same_is_what_the_disk_there_has_hashed_to_the_same() -> None:
    names = ("same", "size", "hash", "missing", "changed", "unknown")
    local = {name: file() for name in names} | {"changed": file(mtime=6)}
    known = {name: entry() for name in names if name != "unknown"}
    store = {name: stored() for name in names if name != "missing"}
    store |= {"size": stored(size=2), "hash": stored(sha256="b")}
    assert tree.same(local, known, store) == {"same"}


def test_settled_is_what_was_proven_and_has_not_changed_since() -> None:
    local = {"disk": file(), "read": file(), "sent": file(), "changed": file(mtime=6)}
    known = {
        "disk": entry(verified="disk"),
        "read": entry(verified="read"),
        "sent": entry(),
        "changed": entry(verified="disk"),
    }
    assert tree.settled(local, known) == {"disk", "read"}


def test_what_is_fetched_back_is_media_and_lies_below_the_media_folder() -> None:
    store = {
        "local_content/ab/cd/x": stored(),
        "local_content/ab/cd/here": stored(),
        "url_cache/2026-01-01/x": stored(),
        "local_content/../../../etc/passwd": stored(),
        "local_content//x": stored(),
        "other": stored(),
    }
    assert tree.to_fetch({"local_content/ab/cd/here": file()}, store) == ["local_content/ab/cd/x"]


KEEP = {"keep_bytes": 100, "keep_seconds": 1000, "idle_seconds": 10, "now": 2000}


@pytest.mark.parametrize(
    ("used", "sizes", "pruned"),
    [
        # Room for all, and none is old.
        ([1500, 1600], [50, 50], []),
        # The longest unused goes first, until the rest has room.
        ([1600, 1500, 1700], [50, 50, 50], [1]),
        # Old ones go whatever the room.
        ([900, 999, 1001], [1, 1, 1], [0, 1]),
        # What is in use stays, though there is no room for it.
        ([1995, 1991], [500, 500], []),
        ([1995, 1985], [500, 500], [1]),
    ],
)
def test_what_goes_of_the_cache(used: list[float], sizes: list[int], pruned: list[int]) -> None:
    rows = zip(used, sizes, strict=True)
    local = {str(number): file(size=size, used=at) for number, (at, size) in enumerate(rows)}
    assert tree.to_prune(local, **KEEP) == [str(number) for number in pruned]


def test_only_media_are_walked(tmp_path: Path) -> None:
    for path in (
        "local_content/ab/cd/x", "remote_thumbnail/s/ab/cd/x/1-1", "url_cache/x",
        "url_cache_thumbnails/x", "local_content/ab/.writing", "other/x",
    ):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"12")
    (tmp_path / "local_content/link").symlink_to("/etc/passwd")
    found = tree.walked(tmp_path)
    assert found.keys() == {"local_content/ab/cd/x", "remote_thumbnail/s/ab/cd/x/1-1"}
    assert {row.size for row in found.values()} == {2}


def test_a_list_of_the_disk_must_be_whole() -> None:
    row = b'{"path": "local_content/x", "size": 1, "mtime": 5, "sha256": "a"}\n'
    assert tree.ledger([row, b'{"files": 1}\n']) == {"local_content/x": stored()}
    for lines in ([row], [row, b'{"files": 2}\n'], []):
        with pytest.raises(tree.Failed, match="not whole"):
            tree.ledger(lines)


def test_a_message_names_some_and_counts_the_rest() -> None:
    assert tree.names(["a", "b"]) == "a, b"
    assert tree.names([str(n) for n in range(25)]).endswith("19 and 5 more")


@pytest.mark.parametrize(
    ("found", "known", "begins", "verdict"),
    [
        (None, None, False, "missing"),
        (None, entry(verified="disk"), True, "missing"),
        (stored(), None, True, "same"),
        # What was once seen to be the same, of a file that is not that any more.
        (stored(9, "b"), entry(9, 5, "b", "read"), False, "broken"),
        (stored(9, "b"), entry(9, 5, "b"), False, "other"),
        (stored(9, "c"), entry(9, 5, "b", "read"), False, "other"),
        # A cache never wrote anything down of it.
        (stored(9, "b"), None, True, "broken"),
        (stored(9, "b"), None, False, "other"),
    ],
)
def test_what_a_file_is_beside_its_object(
    found: Any, known: Any, begins: bool, verdict: str
) -> None:
    assert tree.judged(entry(), found, known, begins=begins) == verdict


def test_whether_an_object_begins_with_a_file_is_seen_as_its_bytes_come() -> None:
    def begins(whole: bytes, size: int, part: bytes) -> bool:
        beginning = tree.Beginning(size)
        for at in range(0, len(whole), 3):
            beginning.write(whole[at : at + 3])
        said = beginning.is_of(entry(size=size, sha256=hashlib.sha256(part).hexdigest()))
        assert isinstance(said, bool)
        return said

    assert begins(b"abcdefgh", 5, b"abcde")
    assert begins(b"abcdefgh", 0, b"")
    assert not begins(b"abcdefgh", 5, b"abcdX")
    assert not begins(b"abc", 5, b"abc")
