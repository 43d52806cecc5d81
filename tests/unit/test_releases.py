"""The tree in use: which built archive is the release's, and where things stand."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from saltworks import bank, registry, releases, telling
from saltworks.errors import Refused
from saltworks.tree import Tree

from tests import cluster
from tests.render.stages import AFTER_M3
from tests.unit.modules.minion_modules import load

VERSION = "1.163.2"
LOCK = b"matrix-synapse==1.163.2 --hash=sha256:aa\n"
CMAP: dict[str, Any] = {"releases": {"synapse": VERSION}}


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """A tree with one lock, and an empty folder for archives."""
    opts = {
        "id": "salt_master",
        "cachedir": str(tmp_path / "cache"),
        "config_dir": str(tmp_path / "etc"),
        "extension_modules": "",
    }
    made = Tree(tmp_path / "tree", opts)
    lock = releases.lock(made.root, VERSION)
    lock.parent.mkdir(parents=True)
    lock.write_bytes(LOCK)
    made.artifacts = tmp_path / "artifacts"
    made.artifacts.mkdir()
    return made


def built(tree: Tree, lock: bytes, digest: str, abi: str = "cp311-x86_64") -> str:
    """An archive as the builder leaves it; returns its name."""
    name = str(load("_modules", "synapse_release").archive_name(VERSION, lock, abi))
    (tree.artifacts / name).write_bytes(b"archive")
    (tree.artifacts / f"{name}.sha256").write_text(f"{digest}  {name}\n")
    return name


def test_the_archive_is_that_of_the_lock_in_the_tree(tree: Tree) -> None:
    assert tree.artifact(CMAP) is None
    for number in range(8):
        built(tree, b"an earlier lock %d" % number, "00")
    assert tree.artifact(CMAP) is None
    name = built(tree, LOCK, "ff")
    assert tree.artifact(CMAP) == {"source": f"salt://releases/{name}", "source_hash": "sha256=ff"}


def test_another_lock_wants_another_archive(tree: Tree) -> None:
    built(tree, LOCK, "ff")
    releases.lock(tree.root, VERSION).write_bytes(LOCK + b"# locked anew\n")
    assert tree.artifact(CMAP) is None


def test_a_build_that_was_cut_is_none(tree: Tree) -> None:
    name = built(tree, LOCK, "ff")
    (tree.artifacts / name).unlink()
    assert tree.artifact(CMAP) is None
    built(tree, LOCK, "")
    (tree.artifacts / f"{name}.sha256").write_text("")
    assert tree.artifact(CMAP) is None


def test_a_release_without_a_lock_has_no_archive(tree: Tree) -> None:
    built(tree, LOCK, "ff")
    assert tree.artifact({"releases": {"synapse": "1.999.0"}}) is None


def test_the_pattern_is_that_of_the_builder() -> None:
    name = load("_modules", "synapse_release").archive_name(VERSION, LOCK, "cp311-x86_64")
    digest = hashlib.sha256(LOCK).hexdigest()[:12]
    assert name == f"synapse-{VERSION}-cp311-x86_64-{digest}.tar.gz"
    assert Path(name).match(releases.archive_pattern(VERSION, LOCK))


@pytest.mark.parametrize(
    ("names", "version"),
    [
        ([], None),
        (["1.163.2.in", "readme.txt", "1.164.0rc1.txt"], None),
        (["1.99.0.txt", "1.163.2.txt", "1.163.10.txt", "1.163.txt"], "1.163.10"),
        (["1.163.2.txt", "1.164.0rc1.txt"], "1.163.2"),
    ],
)
def test_the_newest_lock_by_its_numbers(names: list[str], version: str | None) -> None:
    assert releases.newest(names) == version


def test_the_target_is_the_newest_or_the_one_asked_for(tree: Tree) -> None:
    releases.lock(tree.root, "1.165.0").write_bytes(b"")
    assert releases.target(tree.root) == "1.165.0"
    assert releases.target(tree.root, VERSION) == VERSION


def test_a_target_without_a_lock_is_refused_with_what_there_is(tree: Tree) -> None:
    with pytest.raises(Refused, match=r"no lock of Synapse 1\.2; locked are: 1\.163\.2"):
        releases.target(tree.root, 1.2)  # type: ignore[arg-type]
    releases.lock(tree.root, VERSION).unlink()
    with pytest.raises(Refused, match="no lock of any release; locked are: none"):
        releases.target(tree.root)


def test_where_things_stand_has_the_members_and_who_is_being_told(tmp_path: Path) -> None:
    opts = {"id": "salt_master", "config_dir": str(tmp_path), "extension_modules": ""}
    tree = Tree(tmp_path / "tree", {**opts, "cachedir": str(tmp_path)}, str(tmp_path / "records"))
    bank.write(tree.store, "placement", AFTER_M3)
    row = cluster.member("writer-1", "writer", 1)
    bank.write(tree.store, registry.RECORD, registry.rows({"writer-1": row}))
    at = tree.placement(cluster.WORKER_MAP)
    assert (at.members, at.telling, at.stopped) == ((row,), (), ())
    told: dict[str, Any] = {"stop": {"synapse": ["synapse"]}, "apply": [["synapse"]]}
    for changed in (False, True):
        bank.write(tree.store, telling.TOLD, {"writer-1": {**told, "changed": changed}})
        at = tree.placement(cluster.WORKER_MAP)
        assert (at.telling, at.stopped) == (("writer-1",), () if changed else ("synapse",))
