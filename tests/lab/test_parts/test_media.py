"""M3.media on the real machines: refused, disk full, moved under the witness, back, finalized."""

from __future__ import annotations

import hashlib
import json
import shlex
import time
from typing import Any

import pytest
from saltworks.parts import media as part

from tests.lab import milestones, people
from tests.lab.driver import SaltRunError
from tests.lab.stage import (
    Stage,
    assert_reads_as_before,
    assert_unharmed,
    changes,
    snapshots,
    steps,
)

pytestmark = pytest.mark.lab

Json = dict[str, Any]

TREE = "/var/lib/synapse/media_store"
BUCKET = f"{part.DIRECTORY}/{part.BUCKET}"
MACHINES = ("legacy", "proxy", "synapse", "storage")
#: Seconds that a request may wait while the media move.
WORST_WAIT = 6
#: An upload to a dead store: two tries of the provider, and what the request takes besides.
REFUSED_SECONDS = 40


#: What these tests uploaded: mxc and SHA-256.
UPLOADED: dict[str, str] = {}


@pytest.fixture(scope="module", autouse=True)
def preview(stage: Stage) -> None:
    """A file of the media tree that is no medium."""
    stage.lab.machine("synapse").run(
        f"install -d -o synapse -g synapse {TREE}/url_cache && "
        f"echo preview >{TREE}/url_cache/page && chown synapse: {TREE}/url_cache/page"
    )


def everything(stage: Stage) -> set[str]:
    """What may not change on any machine."""
    return snapshots(stage, MACHINES)


def call(stage: Stage, machine: str, function: str, /, **kwargs: Any) -> Json:
    """A function's answer on one machine."""
    answer: Json = stage.lab.salt(machine, function, timeout=120, **kwargs)[machine]
    return answer


def main_pid(stage: Stage) -> str:
    return stage.main_pid("synapse", "synapse")


def curl(stage: Stage, path: str, options: str = "") -> Any:
    """curl, as a user of the seed, from another machine through the public name."""
    token = json.loads(stage.seed.read_text())["witness"][0]["access_token"]
    ask = f"curl -s -m 60 -H 'Authorization: Bearer {token}' {options} {people.PUBLIC_URL}{path}"
    return stage.legacy.run(ask, timeout=90, check=False)


def upload(stage: Stage, data: bytes) -> tuple[int, str]:
    """Status and mxc of an upload."""
    stage.legacy.run("cat >/root/upload", input=data)
    options = "-w '\\n%{http_code}' -H 'Content-Type: text/plain' --data-binary @/root/upload"
    body, _, code = curl(stage, "/_matrix/media/v3/upload", options).stdout.rpartition("\n")
    return int(code), json.loads(body).get("content_uri", "") if code == "200" else ""


def uploaded(stage: Stage, words: str) -> str:
    """The mxc of an upload that must go well, noted for :func:`all_are_intact`."""
    code, mxc = upload(stage, words.encode())
    assert code == 200
    UPLOADED[mxc] = hashlib.sha256(words.encode()).hexdigest()
    return mxc


def digest(stage: Stage, mxc: str) -> str:
    """SHA-256 of a download."""
    path = f"/_matrix/client/v1/media/download/{mxc.removeprefix('mxc://')}"
    assert curl(stage, path, "-f -o /root/download").ok, f"{mxc} does not come down"
    return stage.legacy.run("sha256sum /root/download").stdout.split()[0]


def all_are_intact(stage: Stage) -> bool:
    """Whether every upload of these tests comes down as it went up."""
    return all(digest(stage, mxc) == sha256 for mxc, sha256 in UPLOADED.items())


def files(stage: Stage, machine: str, folder: str) -> set[str]:
    """Files below a folder, those that are Synapse's media."""
    names = " ".join(("local_content", "local_thumbnails", "remote_content", "remote_thumbnail"))
    find = f"cd {folder} && find {names} -type f 2>/dev/null || true"
    return set(stage.lab.machine(machine).run(find).stdout.split())


def prune_all(stage: Stage) -> Json:
    options = {"keep_bytes": 0, "keep_seconds": 0, "idle_seconds": 0}
    return call(stage, "synapse", "media_store.prune", user="synapse", **options)


def test_a_plan_touches_nothing(stage: Stage, before: Json) -> None:
    uploaded(stage, "before the move")
    found = everything(stage)
    plan = steps(stage.orchestrate("orch.m3.media", test=True))
    assert [name for name, row in plan.items() if row["result"] is False] == []
    assert everything(stage) ^ found == set()
    assert stage.state("m3.media") == "not started"


def test_a_small_disk_is_refused_before_anything_is_done(stage: Stage) -> None:
    storage = stage.lab.machine("storage")
    mount = f"mount -t tmpfs -o size=64m none {part.DIRECTORY}"
    storage.run(f"mkdir -p {part.DIRECTORY} && {mount}")
    with pytest.raises(SaltRunError) as refused:
        stage.orchestrate("orch.m3.media.precheck")
    said = steps(refused.value.answer)["m3-media-prechecked"]["comment"]
    assert f"storage: {part.DIRECTORY}: " in said
    assert "needed for the media" in said
    storage.run(f"umount {part.DIRECTORY}")
    assert stage.state("m3.media") == "not started"


def test_a_disk_that_fills_up_in_the_copy_leaves_a_working_server(stage: Stage) -> None:
    storage, pid = stage.lab.machine("storage"), main_pid(stage)
    storage.run(f"mkdir -p {BUCKET} && mount -t tmpfs -o size=3m none {BUCKET}")
    with pytest.raises(SaltRunError) as failed:
        stage.orchestrate("orch.m3.media")
    said = "\n".join(failed.value.failures)
    for words in ("does not take ", "is its disk full?", "files are there", "run this again"):
        assert words in said
    assert stage.state("m3.media") == "running"
    assert main_pid(stage) == pid
    uploaded(stage, "while its disk was full")
    storage.run(f"mount -o remount,size=1g {BUCKET}")


def test_files_that_change_or_go_in_the_copy_are_never_called_equal(stage: Stage) -> None:
    machine = stage.lab.machine("synapse")
    folder = f"{TREE}/local_content/zz/zz"
    come_and_go = f"while :; do echo >{folder}/1; rm {folder}/1; done"
    # So large that its writer gets a turn while it is read, however busy this host is.
    large = f"head -c 60000000 /dev/zero >{folder}/changing"
    loop = f"({come_and_go}) & {large}; while :; do echo $RANDOM >>{folder}/changing; done"
    machine.run(f"install -d -o synapse -g synapse {TREE}/local_content/zz {folder}")
    unit = "systemd-run --unit=restless --uid=synapse --collect"
    machine.run(f"{unit} bash -c {shlex.quote(loop)}")
    try:
        grown = f"test $(stat -c %s {folder}/changing) -gt 60000000"
        machine.wait_for(grown, 90, "a file that changes")
        done = call(stage, "synapse", "media_store.copy", user="synapse")
        assert "local_content/zz/zz/changing (changes)" in done["unreadable"]
        call(stage, "storage", "storage.hash", **part._hash("storage").kwargs)
        answer = stage.lab.salt(
            "synapse", "media_store.compare", user="synapse", timeout=120, check=False
        )
        said = str(answer["synapse"])
        assert "local_content/zz/zz/changing (changes)" in said, said
    finally:
        # Whether the other one is there when this ends is chance, and in the store it may be.
        there = f"echo >{folder}/1; chown synapse: {folder}/1"
        machine.run(f"systemctl stop restless; truncate -s 1000 {folder}/changing; {there}")
    # What it left moves like anything else, in the next test.


def test_the_media_move_under_the_eyes_of_the_witness(stage: Stage) -> None:
    out = stage.lab.settings.reports / "media.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        stage.orchestrate("orch.m3.media")
        uploaded(stage, "after the move")
    assert_unharmed(out, WORST_WAIT)
    assert json.loads(out.read_text())["media"]["uploaded"] > 3
    assert stage.state("m3.media") == "achieved"
    assert files(stage, "synapse", TREE) == files(stage, "storage", BUCKET)
    assert all_are_intact(stage)


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    found, pid = everything(stage), main_pid(stage)
    assert changes(stage.orchestrate("orch.m3.media")) == []
    assert main_pid(stage) == pid
    assert everything(stage) ^ found == set()


def test_the_store_is_open_to_synapse_alone_and_known_by_the_projects_authority(
    stage: Stage,
) -> None:
    knock = f"timeout 2 bash -c '</dev/tcp/198.18.0.14/{part.PORT}'"
    assert {name: stage.lab.machine(name).run(knock, check=False).ok for name in MACHINES} == {
        "legacy": False, "proxy": False, "synapse": True, "storage": True,
    }
    ask = f"curl -s -o /dev/null -w '%{{http_code}} %{{exitcode}}' {part.endpoint('storage')}/"
    synapse = stage.lab.machine("synapse")
    # The machine itself does not trust it, and who has no keys gets nothing.
    assert synapse.run(ask, check=False).stdout == "000 60"
    trusting = f"{ask} --cacert /etc/synapse/certificates/saltworks.pem"
    assert synapse.run(trusting, check=False).stdout == "400 0"


def test_everything_is_pruned_and_comes_back_as_it_was(stage: Stage, before: Json) -> None:
    done = prune_all(stage)
    assert done["pruned"] == done["files"] > 30
    assert files(stage, "synapse", TREE) == set()
    assert stage.lab.machine("synapse").read(f"{TREE}/url_cache/page") == "preview\n"
    assert_reads_as_before(stage, before)
    assert all_are_intact(stage)


def test_without_its_store_an_upload_fails_soon_and_people_go_on(stage: Stage) -> None:
    cached = uploaded(stage, "in the cache")
    storage = stage.lab.machine("storage")
    for down, up in ((storage.cut, storage.mend), (_stopped(stage), _started(stage))):
        down()
        try:
            begun = time.monotonic()
            code, _ = upload(stage, b"nobody takes this")
            assert code >= 500
            assert time.monotonic() - begun < REFUSED_SECONDS
            assert digest(stage, cached) == UPLOADED[cached]
            assert curl(stage, "/_matrix/client/v3/sync?timeout=0", "-f -o /dev/null").ok
        finally:
            up()
    uploaded(stage, "and now it does")


def _stopped(stage: Stage) -> Any:
    return lambda: stage.lab.machine("storage").run(f"systemctl stop {part.SERVICE}")


def _started(stage: Stage) -> Any:
    return lambda: stage.lab.machine("storage").run(f"systemctl start {part.SERVICE}")


def test_the_way_back_after_new_uploads_loses_nothing(stage: Stage, before: Json) -> None:
    uploaded(stage, "only in the store")
    assert prune_all(stage)["pruned"] > 0
    out = stage.lab.settings.reports / "media-back.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        stage.orchestrate("orch.m3.media.rollback")
    assert_unharmed(out, WORST_WAIT)
    assert stage.state("m3.media") == "rolled-back"
    synapse = stage.lab.machine("synapse")
    assert "media_storage_providers" not in synapse.read("/etc/synapse/homeserver.yaml")
    assert not synapse.run("test -e /etc/saltworks/media.json", check=False).ok
    # The store stands still and has no keys any more, but all of its files.
    storage = stage.lab.machine("storage")
    assert not storage.run(f"systemctl is-active {part.SERVICE}", check=False).ok
    assert not storage.run("test -e /etc/saltworks-storage", check=False).ok
    assert len(files(stage, "storage", BUCKET)) > 30
    assert_reads_as_before(stage, before)
    assert all_are_intact(stage)


def test_it_moves_again_and_is_finalized(stage: Stage) -> None:
    uploaded(stage, "between two moves")
    stage.orchestrate("orch.m3.media")
    with pytest.raises(SaltRunError, match="not armed"):
        stage.orchestrate("orch.m3.media.finalize")
    stage.lab.salt_run("milestone.arm", "m3.media.finalize")
    stage.orchestrate("orch.m3.media.finalize")
    with pytest.raises(SaltRunError, match="retired for good"):
        stage.orchestrate("orch.m3.media.rollback")
    assert files(stage, "synapse", TREE) <= files(stage, "storage", BUCKET)
    assert stage.lab.machine("synapse").run("systemctl is-enabled saltworks-media-cache.timer").ok
    assert all_are_intact(stage)
