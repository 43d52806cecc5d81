"""A restore that was cut off: what a later call takes away, and what it leaves alone."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load


class Machine:
    """One with the record of a restore that was cut off.

    :param answers: what its server says to each question on its own socket; None: there is none.
    """

    def __init__(self, top: Path, active: bool, answers: Any) -> None:
        self.data, self.kept = top / "main", top / "main.before-20261101000000"
        for folder, word in ((self.data, "living"), (self.kept, "old")):
            folder.mkdir()
            (folder / word).touch()
        self.record: dict[str, Any] = {
            "step": "begun", "target": "t", "from": 0, "enabled": True, "kept": str(self.kept)
        }
        (top / "restored.json").touch()
        self.here = {"data": str(self.data), "unit": "patroni"}
        self.done: list[str] = []

        def sql(*_: Any, **__: Any) -> list[Any]:
            if answers is None:
                raise CommandExecutionError("no server")
            return [answers]

        self.module: Any = load("_modules", "saltworks_pgpitr", {
            "pgbackrest.settings": lambda *path: self.here,
            "pgcontent.folder": lambda here: str(top),
            "pgcontent.made_folder": lambda here: str(top),
            "pgcluster.held": lambda *_: contextlib.nullcontext(),
            "pgcluster.read_json": lambda path: self.record if Path(path).exists() else None,
            "pgcluster.connection": lambda here: {},
            "pgcluster.sql": sql,
            "pgcluster.stamp": lambda: "20261128000000000000",
            "pgrecovery.stop": lambda here: self.done.append("stop"),
            "service.status": lambda unit: active,
            "service.enable": lambda unit: self.done.append("enable"),
            "service.start": lambda unit: self.done.append("start"),
        })  # fmt: skip


@pytest.mark.parametrize(("active", "answers", "stands"), [
    (True, None, "patroni is active"), (False, True, "its server answers"),
    (True, True, "patroni is active and its server answers"),
])
def test_a_folder_that_may_be_the_living_one_stays(
    tmp_path: Path, active: bool, answers: Any, stands: str
) -> None:
    machine = Machine(tmp_path, active, answers)
    with pytest.raises(CommandExecutionError, match=f"left alone.*{stands}.*pgpitr.forget"):
        machine.module._put_back(machine.here, machine.record)
    assert (machine.data / "living").exists()
    assert (machine.kept / "old").exists()
    assert machine.done == []


def test_what_a_dead_one_left_is_renamed_and_not_deleted(tmp_path: Path) -> None:
    machine = Machine(tmp_path, False, None)
    machine.module._put_back(machine.here, machine.record)
    assert (machine.data / "old").exists()
    assert (tmp_path / "main.failed-20261128000000" / "living").exists()
    assert machine.done == ["stop", "enable", "start"]
    assert machine.module.forget() == [f"{tmp_path}/main.failed-20261128000000"]


@pytest.mark.parametrize("answers", [None, False])
def test_a_record_is_cleared_only_where_a_server_is_in_use(tmp_path: Path, answers: Any) -> None:
    machine = Machine(tmp_path, True, answers)
    with pytest.raises(CommandExecutionError, match="was cut off"):
        machine.module.forget()
    assert machine.kept.exists()


def test_a_stale_record_goes_with_the_folder_of_before(tmp_path: Path) -> None:
    machine = Machine(tmp_path, True, True)
    assert machine.module.forget() == [str(machine.kept)]
    assert (machine.data / "living").exists()
    assert not (tmp_path / "restored.json").exists()
