"""The lab's front: what a host is refused for, how steps go and end, in which order they stand."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.lab import milestones, scenario
from tests.lab.driver import cache, cgroups, checks, hostcheck
from tests.lab.driver.errors import HostError, LabError
from tests.lab.driver.progress import Progress, Say, Step, StepError, Total
from tests.lab.driver.settings import Settings

V1 = """\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuset rw - cgroup cgroup rw,cpu,cpuset
32 30 0:28 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(tmp_path / "lab", "netns", tmp_path / "cache")


def test_a_host_without_anything_is_told_all_of_it_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_archive() -> None:
        raise LabError("no apt source of Debian bookworm")

    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(hostcheck, "TOOLS", {"no-such-tool": "its-package"})
    monkeypatch.setattr(hostcheck, "DISK_COLD", 1 << 60)
    monkeypatch.setattr(hostcheck, "MEMORY", 1 << 60)
    monkeypatch.setattr(hostcheck, "archive", no_archive)
    with pytest.raises(HostError) as refused:
        hostcheck.check(settings, cached=False, running=False)
    user, tool, *disks, memory, archive = refused.value.problems
    assert user == "not root (user id 1000): run as root, e.g. `sudo make lab`"
    assert tool == "no command no-such-tool: install the package its-package (`make venv` does)"
    for place, text in zip((settings.cache, settings.root), disks, strict=True):
        assert text.startswith(f"{place}: ")
        assert "GiB needed. Free some, or set SALTWORKS_CACHE / SALTWORKS_LAB" in text
    assert "GiB of memory available, 1073741824 GiB needed. Stop something big" in memory
    assert archive == "no apt source of Debian bookworm"
    assert str(refused.value).startswith("this host cannot carry the lab:\n  - not root")
    # Nothing is tried on a host that is unfit anyway.
    assert not settings.root.exists()


def test_a_fit_host_is_not_refused(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(hostcheck, "missing_tools", list)
    monkeypatch.setattr(hostcheck, "kernel_problems", lambda settings: [])
    monkeypatch.setattr(hostcheck, "archive", lambda: None)
    for name in ("DISK_COLD", "DISK_WARM", "MEMORY"):
        monkeypatch.setattr(hostcheck, name, 0)
    hostcheck.check(settings, cached=False, running=False)


def test_less_room_is_asked_for_once_the_cache_is_there(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = hostcheck.DISK_WARM + 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert hostcheck.disk_problems(settings, hostcheck.DISK_WARM) == []
    assert len(hostcheck.disk_problems(settings, hostcheck.DISK_COLD)) == 2


def test_groups_are_made_in_every_hierarchy_and_removed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tops = [tmp_path / "unified", tmp_path / "memory"]
    for top in tops:
        top.mkdir()
    monkeypatch.setattr(cgroups, "host_hierarchies", lambda: [*tops, tmp_path / "none/of/these"])
    (tmp_path / "none").write_text("no folder can be made below a file")
    assert cgroups.make("lab/machine") == [top / "lab/machine" for top in tops]
    (tops[1] / "lab/machine/cgroup.procs").write_text("0\n17\n4711\n")
    assert cgroups.processes("lab") == {17, 4711}
    (tops[1] / "lab/machine/cgroup.procs").unlink()
    assert cgroups.exists("lab")
    cgroups.remove("lab")
    assert not cgroups.exists("lab")


def test_of_v1_alone_every_hierarchy_but_cpuset_is_used() -> None:
    assert [path.name for path in cgroups.hierarchies(V1)] == ["memory"]


def progress(settings: Settings) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    lab: Any = SimpleNamespace(settings=settings)
    return Progress(lab, Console(file=out, width=200)), out


def works(lab: Any, say: Say) -> str:
    say("half way")
    return "fine"


def breaks(lab: Any, say: Say) -> str:
    raise LabError("legacy: no room")


def hangs(lab: Any, say: Say) -> str:
    time.sleep(30)
    return ""


def test_steps_are_told_one_by_one_with_their_bounds(settings: Settings) -> None:
    shown, out = progress(settings)
    shown.run([Step("first", works, 5), Step("second", works, 6)])
    lines = out.getvalue().splitlines()
    assert lines[0] == "[1/2] first (at most 5 s)"
    assert lines[1].startswith("[1/2]   half way  (")
    assert re.fullmatch(r"\[1/2\] first: done in \d+\.\d s  fine", lines[2])
    assert lines[-1].startswith("all steps done in ")
    assert not settings.reports.exists()


def test_a_failing_step_ends_the_run_and_says_where_to_look(settings: Settings) -> None:
    shown, out = progress(settings)
    steps = [Step("first", works, 5), Step("second", breaks, 5), Step("third", works, 5)]
    with pytest.raises(StepError) as failed:
        shown.run(steps, Total("run", 900, 480))
    text = str(failed.value)
    assert re.match(r"step `second` failed after \d+\.\d s\nlegacy: no room\n", text)
    assert f"logs: {settings.logs}\nRun the same command again to go on from here." in text
    assert "third" not in out.getvalue()
    report = json.loads((settings.reports / "run.json").read_text())
    assert report["done"] is False
    assert [row["state"] for row in report["steps"]] == ["done", "failed", "waiting"]


def test_after_a_proof_that_failed_nobody_is_told_to_go_on(settings: Settings) -> None:
    def proves(lab: Any, say: Say) -> str:
        milestones.judge(lab, "m1", {})
        return ""

    shown, _ = progress(settings)
    with pytest.raises(StepError) as failed:
        shown.run([Step("M1", proves, 5)])
    text = str(failed.value)
    assert "its proof failed" in text
    assert "is not done twice: `make clean-lab`, then `make lab`, try anew." in text
    assert text.endswith(f"logs: {settings.logs}")


def test_a_step_that_takes_too_long_is_stopped(settings: Settings) -> None:
    shown, _ = progress(settings)
    begun = time.monotonic()
    with pytest.raises(StepError, match=r"(?s)step `slow` failed .*\snot done within its 0.2 s\s"):
        shown.run([Step("slow", hangs, 0.2)])
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("before", "builds", "said"),
    [
        (0.0, False, "in all 0 s, of 480 s that a run with everything in the cache may take"),
        (500.0, True, "in all 500 s, of 900 s that a run with things to build may take"),
        (500.0, False, "TOO SLOW: in all 500 s, a run with everything in the cache may take 480 s"),
        (901.0, True, "TOO SLOW: in all 901 s, a run with things to build may take 900 s"),
    ],
)
def test_the_whole_run_is_held_against_its_bound_and_written_down(
    settings: Settings, before: float, builds: bool, said: str
) -> None:
    def build(lab: Any, say: Say) -> str:
        if builds:
            cache.made(settings.cache, "image", ["v1"], lambda work: None)
        return ""

    # Of a run before this one in the same process.
    cache.made(settings.cache, "other", ["v1"], lambda work: None)
    shown, out = progress(settings)
    shown.run([Step("build", build, 5)], Total("run", 900, 480, before))
    assert said in out.getvalue().splitlines()[-1]
    report = json.loads((settings.reports / "run.json").read_text())
    assert report["done"] is True
    assert report["seconds"] >= before == report["before_seconds"]
    assert report["bound_seconds"] == (900 if builds else 480)
    assert len(report["built"]) == builds
    assert (report["cores"], report["date"][-4:]) == (os.cpu_count(), " UTC")
    assert [row["name"] for row in report["steps"]] == ["build"]


def test_the_steps_of_make_lab_stand_in_an_order_that_works() -> None:
    names = [step.name for step in scenario.STEPS]
    assert len(set(names)) == len(names)
    assert names[: len(scenario.PREPARE)] == [step.name for step in scenario.PREPARE]
    assert names[0] == "check host"
    order = [
        scenario.check_host,
        scenario.build_debian,
        scenario.build_packages,
        scenario.build_network,
        scenario.old_server,
        scenario.create_machines,
        scenario.push_tree,
        scenario.boot_machines,
        scenario.chat_serves,
        scenario.adopt,
    ]
    functions = [step.function for step in scenario.STEPS]
    assert functions[: len(order)] == order
    achieved = [function.__name__ for function in functions[len(order) : -1]]
    assert functions[-1] == scenario.show_workers
    assert achieved == [f"achieve_{name.replace('.', '_')}" for name in milestones.MILESTONES]
    for step in scenario.STEPS:
        assert 0 < step.bound_seconds <= scenario.COLD_SECONDS


def test_python_is_typed_wherever_it_lies() -> None:
    (words,) = [words for words in checks.lint_commands([]) if words[0] == "mypy"]
    assert words[1:] == ["tests", "salt", "src"]
