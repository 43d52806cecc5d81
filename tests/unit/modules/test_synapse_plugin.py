"""Packages beside the release: whole or not at all, and nothing but what was meant."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load


def digest(path: Path) -> str:
    return f"sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "mine-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("mine/__init__.py", "WORD = 1\n")
    return path


def unpack(*args: Any) -> None:
    load("_modules", "synapse_plugin").unpack(*args)


def test_a_wheel_and_a_single_file_are_unpacked_readable(tmp_path: Path, wheel: Path) -> None:
    unpack(str(tmp_path / "plugins/mine-1"), str(wheel), digest(wheel))
    found = tmp_path / "plugins/mine-1/mine/__init__.py"
    assert found.read_text() == "WORD = 1\n"
    assert oct(found.stat().st_mode & 0o777) == "0o644"
    single = tmp_path / "one.py"
    single.write_text("WORD = 2\n")
    unpack(str(tmp_path / "plugins/one-1"), str(single), digest(single))
    assert (tmp_path / "plugins/one-1/one.py").exists()
    assert sorted(path.name for path in (tmp_path / "plugins").iterdir()) == ["mine-1", "one-1"]


def test_what_was_not_meant_is_refused_and_leaves_nothing(tmp_path: Path, wheel: Path) -> None:
    target = tmp_path / "plugins/mine-1"
    with pytest.raises(CommandExecutionError, match="nothing was unpacked"):
        unpack(str(target), str(wheel), "sha256=" + "0" * 64)
    with pytest.raises(CommandExecutionError, match="is not there"):
        unpack(str(target), str(tmp_path / "none.whl"), digest(wheel))
    text = tmp_path / "mine.whl"
    text.write_text("no zip")
    with pytest.raises(CommandExecutionError, match="neither a wheel"):
        unpack(str(target), str(text), digest(text))
    assert not target.exists()
    assert list((tmp_path / "plugins").iterdir()) == []


def test_the_state_unpacks_once(tmp_path: Path, wheel: Path) -> None:
    seen: list[Any] = []

    def unpacked(*args: Any) -> None:
        seen.append(args)
        (tmp_path / "mine-1").mkdir()

    salt = {"synapse_plugin.unpack": unpacked}
    state = load("_states", "synapse_plugin", salt)
    row = (str(tmp_path / "mine-1"), str(wheel), digest(wheel))
    planned = load("_states", "synapse_plugin", salt, test=True).unpacked(*row)
    assert (planned["result"], seen) == (None, [])
    assert state.unpacked(*row)["changes"]
    assert state.unpacked(*row)["changes"] == {}
    assert len(seen) == 1
