"""Releases: named by what they are made of, unpacked whole or not at all."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

LOCKED = """\
attrs==26.1.0 --hash=sha256:00
matrix-synapse[postgres]==1.163.2 \\
    --hash=sha256:11
"""


@pytest.fixture
def releases(tmp_path: Path) -> ModuleType:
    """The module, with its releases below ``tmp_path``."""
    module = load("_modules", "synapse_release", salt={"cp.cache_file": lambda url: ""})
    module.RELEASES = str(tmp_path / "releases")  # type: ignore[attr-defined]
    return module


def archive(folder: Path, version: str = "1.163.2", text: str = "#!python") -> tuple[str, str]:
    """A small archive of the right form: its path and hash."""
    program = folder / "made" / version / "bin" / "python"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(text, encoding="utf-8")
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(folder / "made" / version, arcname=version)
    return str(path), f"sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_name_follows_the_requirements(releases: ModuleType) -> None:
    name = releases.archive_name("1.163.2", b"a", "cp311-x86_64")
    assert name == "synapse-1.163.2-cp311-x86_64-ca978112ca1b.tar.gz"
    assert releases.archive_name("1.163.2", b"b", "cp311-x86_64") != name


def test_requirements_of_another_version_are_refused(releases: ModuleType, tmp_path: Path) -> None:
    locked = tmp_path / "locked.txt"
    locked.write_text(LOCKED, encoding="utf-8")
    assert not releases.describe("1.163.2", str(locked), str(tmp_path))["present"]
    for version in ("1.163.1", "1.163", "1.163.20"):
        with pytest.raises(CommandExecutionError, match=f"does not lock matrix-synapse=={version}"):
            releases.describe(version, str(locked), str(tmp_path))


def test_missing_requirements_are_named(releases: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CommandExecutionError, match=r"salt://nowhere\.txt does not exist"):
        releases.describe("1.163.2", "salt://nowhere.txt", str(tmp_path))


def test_archive_without_its_hash_is_not_there(releases: ModuleType, tmp_path: Path) -> None:
    locked = tmp_path / "locked.txt"
    locked.write_text(LOCKED, encoding="utf-8")
    path = Path(releases.describe("1.163.2", str(locked), str(tmp_path))["path"])
    path.write_bytes(b"half")
    assert not releases.describe("1.163.2", str(locked), str(tmp_path))["present"]
    Path(f"{path}.sha256").write_text(f"{'0' * 64}  {path.name}\n", encoding="utf-8")
    found = releases.describe("1.163.2", str(locked), str(tmp_path))
    assert (found["present"], found["source_hash"]) == (True, f"sha256={'0' * 64}")


def test_build_that_fails_leaves_nothing(
    releases: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = tmp_path / "locked.txt"
    locked.write_text(LOCKED, encoding="utf-8")

    def fail(*args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, "", "hash mismatch")

    monkeypatch.setattr(releases, "_abi", lambda: "cp311-x86_64")
    monkeypatch.setattr(releases.subprocess, "run", fail)
    with pytest.raises(CommandExecutionError, match=r"building Synapse 1\.163\.2: hash mismatch"):
        releases.build("1.163.2", str(locked), str(tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_unpacked_release_records_its_hash(releases: ModuleType, tmp_path: Path) -> None:
    path, digest = archive(tmp_path)
    assert releases.installed("1.163.2") == {}
    releases.unpack("1.163.2", path, digest)
    folder = tmp_path / "releases" / "1.163.2"
    assert json.loads((folder / ".release").read_text("utf-8"))["source_hash"] == digest
    assert releases.installed("1.163.2")["source_hash"] == digest
    assert [entry.name for entry in (tmp_path / "releases").iterdir()] == ["1.163.2"]
    assert Path(path).exists()


def test_archive_with_another_hash_is_refused(releases: ModuleType, tmp_path: Path) -> None:
    path, _ = archive(tmp_path)
    with pytest.raises(CommandExecutionError, match="nothing was unpacked"):
        releases.unpack("1.163.2", path, f"sha256={'0' * 64}")
    assert not (tmp_path / "releases").exists()


def test_archive_of_another_version_is_refused(releases: ModuleType, tmp_path: Path) -> None:
    path, digest = archive(tmp_path, "1.162.0")
    with pytest.raises(CommandExecutionError, match=r"holds no release 1\.163\.2"):
        releases.unpack("1.163.2", path, digest)
    assert list((tmp_path / "releases").iterdir()) == []


def test_missing_archive_says_how_to_build_it(releases: ModuleType) -> None:
    with pytest.raises(CommandExecutionError, match=r"synapse\.built"):
        releases.unpack("1.163.2", "salt://releases/none.tar.gz", "sha256=0")


def test_release_built_anew_takes_the_old_ones_place(releases: ModuleType, tmp_path: Path) -> None:
    releases.unpack("1.163.2", *archive(tmp_path))
    path, digest = archive(tmp_path, text="#!other")
    releases.unpack("1.163.2", path, digest)
    assert releases.installed("1.163.2")["source_hash"] == digest
    assert (tmp_path / "releases/1.163.2/bin/python").read_text("utf-8") == "#!other"


def test_config_is_not_checked_by_a_release_that_is_not_there(releases: ModuleType) -> None:
    with pytest.raises(CommandExecutionError, match=r"apply synapse\.installed first"):
        releases.check_config("1.163.2", "/etc/synapse/homeserver.yaml", "synapse")


def test_a_release_that_is_not_there_is_not_asked_for_an_extra(releases: ModuleType) -> None:
    with pytest.raises(CommandExecutionError, match=r"apply synapse\.installed first"):
        releases.lacking("1.163.2", "redis")
