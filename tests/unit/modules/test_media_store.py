"""``media_store`` on a minion: what it asks systemd, and when a cache is empty already."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

FORMULA = Path(__file__).parents[3] / "formulas/media/files"

SHOWN = """Id=saltworks-media-cache.timer
ActiveState={timer}
Result=success

Id=saltworks-media-cache.service
ActiveState={service}
Result={result}
"""


@pytest.mark.parametrize(
    ("timer", "service", "result", "wanted"),
    [
        ("active", "inactive", "success", ("active", "success")),
        ("inactive", "failed", "exit-code", ("inactive", "exit-code")),
        ("active", "activating", "success", ("active", "running")),
    ],
)
def test_timer_and_service_are_told_apart(
    timer: str, service: str, result: str, wanted: tuple[str, str]
) -> None:
    module: Any = load("_modules", "media_store")
    found = module.units(SHOWN.format(timer=timer, service=service, result=result))
    assert (found["timer"], found["service"]) == wanted
    assert module.units("") == {"timer": "unknown", "service": "unknown"}


def constant(file: str, name: str) -> Any:
    """What a file of the formula gives a name, which it is not imported for."""
    for row in ast.parse((FORMULA / file).read_text()).body:
        if isinstance(row, ast.Assign) and ast.unparse(row.targets[0]) == name:
            return ast.literal_eval(row.value)
    raise AssertionError(f"{file} has no {name}")


def test_what_programs_that_cannot_import_each_other_both_say_is_the_same() -> None:
    module: Any = load("_modules", "media_store")
    tree, local = "saltworks_media_tree.py", "saltworks_media_local.py"
    assert constant(tree, "DIRECTORIES") == module.DIRECTORIES
    assert constant(tree, "PARTIAL") == constant(local, "PARTIAL")


def test_an_empty_cache_is_left_even_without_program_and_settings(tmp_path: Path) -> None:
    module: Any = load("_modules", "media_store")
    module._run = module._systemctl = pytest.fail
    (tmp_path / "local_content/ab").mkdir(parents=True)
    (tmp_path / "url_cache").mkdir()
    (tmp_path / "url_cache/page").write_text("a preview")
    assert module.leave("synapse", str(tmp_path))["files"] == 0
    assert module.leave("synapse", str(tmp_path / "nowhere"))["files"] == 0


def test_a_cache_with_a_file_is_left_by_the_program_once_pruning_has_ended(tmp_path: Path) -> None:
    module: Any = load("_modules", "media_store")
    (tmp_path / "remote_content/x").mkdir(parents=True)
    (tmp_path / "remote_content/x/y").write_text("x")
    calls: list[tuple[Any, ...]] = []

    def called(*words: Any) -> dict[str, int]:
        calls.append(words)
        return {"files": 1}

    module._systemctl = module._run = called
    assert module.leave("synapse", str(tmp_path), 60) == {"files": 1}
    assert calls == [
        ("stop", "saltworks-media-cache.timer", "saltworks-media-cache.service"),
        ("synapse", 60, "leave"),
    ]


def test_a_cache_with_a_file_and_no_settings_is_not_left(tmp_path: Path) -> None:
    module: Any = load("_modules", "media_store")
    module.SETTINGS = str(tmp_path / "none")
    module._systemctl = lambda *words: ""
    (tmp_path / "local_content").mkdir()
    (tmp_path / "local_content/y").write_text("x")
    with pytest.raises(CommandExecutionError, match="is not there"):
        module.leave("synapse", str(tmp_path))
