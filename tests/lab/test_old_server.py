"""The old server (M0): what the seed wrote is what a client reads, also after a restart."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.lab import legacy, milestones, readback
from tests.lab.driver import LabMachine
from tests.lab.stage import Stage

pytestmark = pytest.mark.lab

Read = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def old_server(found: Stage) -> LabMachine:
    """The old server, as it was seeded."""
    return found.legacy


@pytest.fixture(scope="module")
def seed(found: Stage) -> dict[str, Any]:
    """What the seed wrote into the server, by its own account."""
    return dict(json.loads(found.seed.read_text()))


@pytest.fixture(scope="module")
def read(found: Stage, tmp_path_factory: pytest.TempPathFactory) -> Read:
    """Reads everything back as each user, through the public name."""
    out = tmp_path_factory.mktemp("readback") / "readback.json"
    return lambda: milestones.read_back(found.lab, found.seed, out)


@pytest.fixture(scope="module")
def before(read: Read) -> dict[str, Any]:
    """The server as the seed left it."""
    return read()


def unexplained(before: dict[str, Any], after: dict[str, Any]) -> list[readback.Difference]:
    """Differences that no rule of the whitelist explains."""
    return [row for row in readback.compare(before, after) if not row.allowed_by]


def stored(mxc: str, folder: str = "local_content") -> str:
    """Where the old server keeps a medium (a folder of them, for thumbnails)."""
    name = mxc.rpartition("/")[2]
    return f"{legacy.HOME}/media_store/{folder}/{name[:2]}/{name[2:4]}/{name[4:]}"


@contextlib.contextmanager
def damaged(machine: LabMachine, paths: list[str]) -> Iterator[None]:
    """Other bytes in the middle of the files, which are afterwards what they were.

    Not at their end: the server sends as many bytes as its database says, so what is appended
    to a file is not read by anybody.
    """
    were = {path: machine.read_bytes(path) for path in paths}
    sums = machine.run(["sha256sum", *paths]).stdout
    try:
        for path, data in were.items():
            half = len(data) // 2
            other = bytes(byte ^ 255 for byte in data[half : half + 8])
            # In place, so that owner, mode and length stay.
            machine.run(f"dd of={path} bs=1 seek={half} conv=notrunc status=none", input=other)
            assert machine.read_bytes(path) not in (data, b"")
        yield
    finally:
        for path, data in were.items():
            machine.run(f"dd of={path} conv=notrunc status=none", input=data)
        assert machine.run(["sha256sum", *paths]).stdout == sums


def test_every_medium_is_what_the_seed_uploaded(
    seed: dict[str, Any], before: dict[str, Any]
) -> None:
    uploaded = {medium["mxc"]: medium for medium in seed["media"]}
    assert before["media"].keys() == uploaded.keys()
    for mxc, found in before["media"].items():
        medium = uploaded[mxc]
        if medium["quarantined"]:
            assert found["bytes"] == found["without_token"]
            assert found["bytes"]["refused"] == 404
            continue
        assert found["bytes"] == found["without_token"] == medium["sha256"], medium["name"]
        assert found["thumbnails"] == {
            "{width}x{height}-{method}".format(**size): size["sha256"]
            for size in medium["thumbnails"]
        }, medium["name"]


def test_damaged_media_are_seen_by_their_names_and_only_they(
    old_server: LabMachine, seed: dict[str, Any], before: dict[str, Any], read: Read
) -> None:
    pictures = [
        medium["mxc"]
        for medium in seed["media"]
        if medium["thumbnails"] and not medium["quarantined"]
    ]
    medium, other = pictures[:2]
    folder = stored(other, "local_thumbnails")
    thumbnail = old_server.run(["find", folder, "-name", "32-32-*-crop"]).stdout.split()
    assert len(thumbnail) == 1
    with damaged(old_server, [stored(medium), *thumbnail]):
        seen = {row.path: row for row in unexplained(before, read())}
    assert seen.keys() == {
        ("media", medium, "bytes"),
        ("media", medium, "without_token"),
        ("media", other, "thumbnails", "32x32-crop"),
    }
    assert all(re.fullmatch("[0-9a-f]{64}", row.after) for row in seen.values())
    assert unexplained(before, read()) == []


def test_a_restart_changes_nothing(
    old_server: LabMachine, before: dict[str, Any], read: Read
) -> None:
    old_server.run("systemctl restart matrix-synapse", timeout=60)
    legacy.await_synapse(old_server)
    assert unexplained(before, read()) == []


def test_the_other_web_site_is_served_beside_it(old_server: LabMachine) -> None:
    answer = old_server.run("curl -sf -H 'Host: www.lale.test' http://127.0.0.1/")
    assert "<html" in answer.stdout.lower()
