"""Copying a tree: what rsync is told, and what its answer means."""

from __future__ import annotations

import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

STATS = """
Number of files: 2,311 (reg: 2,290, dir: 21)
Number of created files: 12
Number of deleted files: 3
Number of regular files transferred: 1,204
Total file size: 9,000 bytes
"""


class Rsync:
    """``transfer`` whose rsync answers as told; the last command is in ``argv``."""

    def __init__(self, code: int = 0, stderr: str = "", late: bool = False) -> None:
        self.argv: list[str] = []
        self.answer = SimpleNamespace(returncode=code, stdout=STATS, stderr=stderr)
        self.late = late
        self.transfer: Any = load("_modules", "transfer")
        rsync = SimpleNamespace(run=self._run, TimeoutExpired=subprocess.TimeoutExpired)
        vars(self.transfer)["subprocess"] = rsync

    def _run(self, argv: list[str], timeout: float, **more: Any) -> Any:
        self.argv = argv
        if self.late:
            raise subprocess.TimeoutExpired(argv, timeout)
        return self.answer

    def pull(self, folder: Path, **more: Any) -> dict[str, Any]:
        done = self.transfer.pull(
            "/home/media", str(folder), "198.18.0.10", "/k", "synapse", **more
        )
        assert isinstance(done, dict)
        return done


def test_files_are_counted_whatever_their_number() -> None:
    transfer: Any = load("_modules", "transfer")
    assert transfer.counts(STATS) == {"files": 1204, "deleted": 3}
    assert transfer.counts("") == {"files": 0, "deleted": 0}


@pytest.mark.parametrize("code", [0, 24])
def test_a_copy_is_exact_and_of_a_host_that_is_known(tmp_path: Path, code: int) -> None:
    rsync = Rsync(code)
    done = rsync.pull(tmp_path / "media")
    assert (done["files"], done["deleted"]) == (1204, 3)
    assert (tmp_path / "media").is_dir()
    assert rsync.argv[-2:] == ["root@198.18.0.10:/", f"{tmp_path}/media/"]
    assert {"--delete", "--chown=synapse:synapse"} <= set(rsync.argv)
    ssh = rsync.argv[rsync.argv.index("-e") + 1]
    for part in ("-i /k ", "StrictHostKeyChecking=yes", "BatchMode=yes", "IdentitiesOnly=yes"):
        assert part in ssh


def test_counting_only_makes_nothing(tmp_path: Path) -> None:
    rsync = Rsync()
    rsync.pull(tmp_path / "media", dry_run=True)
    assert "--dry-run" in rsync.argv
    assert not (tmp_path / "media").exists()


def test_a_failure_names_both_ends_the_reason_and_what_to_do(tmp_path: Path) -> None:
    rsync = Rsync(code=12, stderr="Host key verification failed.")
    with pytest.raises(CommandExecutionError) as failed:
        rsync.pull(tmp_path)
    for part in ("/home/media", "198.18.0.10", "exit 12", "Host key verification", "again"):
        assert part in str(failed.value)


def test_a_copy_that_takes_too_long_is_gone_on_with(tmp_path: Path) -> None:
    with pytest.raises(CommandExecutionError, match=r"longer than 60 s; .*goes on where it was"):
        Rsync(late=True).pull(tmp_path, timeout=60)
