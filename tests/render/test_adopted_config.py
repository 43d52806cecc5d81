"""Adopted configurations, and those that stop the release, in the release's own loader."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from saltworks import adopt, plan, synapse_config

from tests.unit.adopt import adopt_cases

#: Loads each configuration of a folder as ``synapse_homeserver`` would, prints what happened.
LOADER = """
import contextlib, io, json, logging, os, pathlib, sys
from synapse.config.homeserver import HomeServerConfig
logging.disable(logging.CRITICAL)
said = {}
for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    os.chdir(path)
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            HomeServerConfig.load_config("test", ["-c", "homeserver.yaml"])
            said[path.name] = ""
        except (Exception, SystemExit) as error:
            said[path.name] = f"{type(error).__name__}: {error}"
json.dump(said, sys.stdout)
"""


def load_all(release: Path, folder: Path) -> dict[str, str]:
    """What the release's loader says to ``<folder>/<name>/homeserver.yaml``: "" when it loads."""
    done = subprocess.run(
        [str(release / "bin/python"), "-c", LOADER, str(folder)],
        capture_output=True, text=True, timeout=120, check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, str] = json.loads(done.stdout)
    return said


def write(folder: Path, files: dict[str, str], rewritten: dict[str, str]) -> None:
    """Write files into a folder, their old paths replaced by ones in that folder."""
    for path, text in files.items():
        for old, new in rewritten.items():
            path, text = path.replace(old, new), text.replace(old, new)
        target = folder / path.lstrip("/") if not path.startswith(str(folder)) else Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


def adopted(name: str) -> tuple[dict[str, Any], adopt.Adoption]:
    case = adopt_cases.load(name)
    return case, adopt.judge(
        adopt_cases.found(case),
        accepted=case.get("accepted", ()),
        available_modules=case.get("available", adopt.AVAILABLE),
        carries_files=case.get("carries_files", False),
    )


def write_adopted(folder: Path, outcome: adopt.Adoption) -> None:
    """The configuration that the plan makes of a cluster map, as the formula installs it."""
    secret: Callable[[str], str] = outcome.secrets.__getitem__
    config = synapse_config.homeserver_config(
        outcome.cluster_map, plan.Placement.recorded(outcome.cluster_map, {}), "legacy", secret
    )
    files = {
        f"{plan.CONFIG_DIR}/{path}": secret(row["secret"])
        for path, row in outcome.cluster_map["synapse"].get("files", {}).items()
    }
    files[f"{plan.CONFIG_DIR}/signing.key"] = secret("signing_key")
    files[f"{plan.CONFIG_DIR}/homeserver.yaml"] = yaml.safe_dump(config)
    media = outcome.cluster_map["legacy"]["media_store_path"]
    write(folder, files, {plan.CONFIG_DIR: str(folder), media: f"{folder}/media"})


def write_found(folder: Path, case: dict[str, Any]) -> None:
    """The old configuration, its paths below the folder so that what it names exists."""
    path = case.get("homeserver_path", f"{adopt_cases.HOME}/homeserver.yaml")
    files = adopt_cases.found(case)["config_files"]
    write(folder, files, {path.rpartition("/")[0]: str(folder)})


def test_every_adopted_configuration_loads(synapse_release: Path, tmp_path: Path) -> None:
    expected = []
    for name in adopt_cases.names():
        case, outcome = adopted(name)
        # "loads: false" are those whose modules are not in this project's release.
        if not outcome.problems and case.get("loads", True):
            write_adopted(tmp_path / name, outcome)
            expected.append(name)
    assert len(expected) >= 30
    said = load_all(synapse_release, tmp_path)
    assert {name: text for name, text in said.items() if text} == {}
    assert sorted(said) == sorted(expected)


def test_what_is_said_to_stop_the_release_does(synapse_release: Path, tmp_path: Path) -> None:
    wanted = {}
    for name in adopt_cases.names():
        case = adopt_cases.load(name)
        if "stops" in case:
            write_found(tmp_path / name, case)
            wanted[name] = case["stops"]
    assert len(wanted) >= 30
    said = load_all(synapse_release, tmp_path)
    for name, text in wanted.items():
        assert any(part in said[name] for part in text.split("|")), (name, text, said[name])


def test_a_broken_signing_key_would_have_been_noticed(
    synapse_release: Path, tmp_path: Path
) -> None:
    """The test above is worth something only if the loader can refuse."""
    _, outcome = adopted("sqlite")
    write_adopted(tmp_path / "broken", outcome)
    (tmp_path / "broken/signing.key").write_text("nonsense\n", encoding="utf-8")
    assert "signing_key" in load_all(synapse_release, tmp_path)["broken"]


@pytest.mark.parametrize("name", ["sqlite", "typical-2021"])
def test_the_secrets_are_in_the_configuration(name: str, tmp_path: Path) -> None:
    _, outcome = adopted(name)
    write_adopted(tmp_path, outcome)
    config = yaml.safe_load((tmp_path / "homeserver.yaml").read_text(encoding="utf-8"))
    assert config["macaroon_secret_key"] == "macaroon#1"
    assert config["registration_shared_secret"] == "shared"
    assert config["server_name"] == "lale.test"
