"""The store's machine: rclone's version, the list of its files; and media calls of Synapse's."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load


def hashing(folder: Path) -> Any:
    """``storage.hash`` of a folder's bucket, which stores its list nowhere."""
    storage: Any = load("_modules", "storage")
    sent: list[list[str]] = []

    def client(words: list[str], *_: Any) -> str:
        sent.append(words)
        return ""

    storage._client = client

    def run() -> dict[str, Any]:
        ledger = str(folder / "state/hashes.jsonl")
        done = storage.hash_(str(folder / "media"), "https://s:9000", "b/k", ledger=ledger)
        assert sent.pop() == ["copyto", "--ignore-times", ledger, "store:b/k"]
        return dict(done)

    return run


def rows(ledger: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ledger.read_text().splitlines()]


def test_the_locked_version_is_read(tmp_path: Path) -> None:
    storage: Any = load("_modules", "storage")
    lock = Path(__file__).parents[3] / "formulas/storage/files/rclone.txt"
    vars(storage)["PROGRAMS"] = str(tmp_path)
    found = storage.described(str(lock))
    assert found["version"] == "1.75.2"
    assert not found["present"]
    (tmp_path / "1.75.2").mkdir()
    (tmp_path / "1.75.2/rclone").touch()
    # It is there, but another one is in use.
    assert not storage.described(str(lock))["present"]
    (tmp_path / "current").symlink_to("1.75.2")
    assert storage.described(str(lock))["present"]
    with pytest.raises(CommandExecutionError, match="make lock"):
        storage.locked_version("boto3==1\n")


def test_every_file_is_hashed_once_and_again_when_it_changed(tmp_path: Path) -> None:
    run = hashing(tmp_path)
    bucket, ledger = tmp_path / "media", tmp_path / "state/hashes.jsonl"
    (bucket / "a/b").mkdir(parents=True)
    (bucket / "a/b/x").write_bytes(b"one")
    (bucket / "y").write_bytes(b"")
    (bucket / ".rclone_temp_put_1").write_bytes(b"half")
    done = run()
    assert (done["files"], done["bytes"], done["read"]) == (2, 3, 2)
    assert [row.get("path") for row in rows(ledger)] == ["y", "a/b/x", None]
    assert rows(ledger)[-1] == {"files": 2}
    assert run()["read"] == 0
    (bucket / "a/b/x").write_bytes(b"two!")
    (bucket / "y").unlink()
    done = run()
    assert (done["files"], done["read"]) == (1, 1)
    assert rows(ledger)[0]["size"] == 4


def test_a_list_that_cannot_be_read_is_made_anew(tmp_path: Path) -> None:
    run = hashing(tmp_path)
    for folder in ("media", "state"):
        (tmp_path / folder).mkdir()
    (tmp_path / "media/x").write_bytes(b"x")
    (tmp_path / "state/hashes.jsonl").write_text('{"path": "x", "siz')
    assert run()["read"] == 1


def test_a_store_that_does_not_answer_is_said_with_its_last_word(tmp_path: Path) -> None:
    storage: Any = load("_modules", "storage")
    keys = tmp_path / "keys.env"
    keys.write_text("RCLONE_AUTH_KEY='\"access,secret\"'\n")
    said: list[Any] = []

    def ask(command: list[str], timeout: float, environment: dict[str, str]) -> str:
        said.append(environment)
        return "other/\n"

    vars(storage)["_ask"] = ask
    with pytest.raises(CommandExecutionError, match=r"no bucket media: \['other/'\]"):
        storage.healthy("https://s:9000", "media", 0.1, keys=str(keys))
    assert said[0]["RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY"] == "secret"
    vars(storage)["_ask"] = lambda *_: "media/\nother/\n"
    assert storage.healthy("https://s:9000", "media", keys=str(keys))["seconds"] < 5


def media_store(stdout: str = "", stderr: str = "", code: int = 0) -> Any:
    """``media_store`` whose program answers as told; its command is in ``argv``."""
    module: Any = load("_modules", "media_store")
    vars(module)["SETTINGS"] = __file__
    module.argv = []

    def run(argv: list[str], **more: Any) -> Any:
        module.argv = argv
        return SimpleNamespace(returncode=code, stdout=stdout, stderr=stderr)

    vars(module)["subprocess"] = SimpleNamespace(run=run, TimeoutExpired=TimeoutError)
    return module


def test_the_program_runs_as_synapse_and_its_answer_is_passed_on() -> None:
    module = media_store('{"files": 3}')
    assert module.prune("synapse", keep_bytes=0) == {"files": 3}
    assert module.argv[:4] == ["runuser", "-u", "synapse", "--"]
    assert module.argv[-2:] == ["prune", "--keep-bytes=0"]


def test_its_error_is_the_operators_text() -> None:
    with pytest.raises(CommandExecutionError, match=r"^no room$"):
        media_store('{"error": "no room"}', code=1).copy("synapse")
    with pytest.raises(CommandExecutionError, match="copy broke off: Traceback"):
        media_store("", "Traceback", code=1).copy("synapse")


def test_before_the_move_the_next_step_is_named() -> None:
    module = media_store()
    vars(module)["SETTINGS"] = "/nowhere/media.json"
    with pytest.raises(CommandExecutionError, match=r"orch\.m3\.media"):
        module.prune("synapse")
