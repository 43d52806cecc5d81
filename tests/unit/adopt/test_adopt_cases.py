"""Every case file: its verdicts, its problems (all of them, no other), its map and secrets."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from saltworks import adopt, clustermap

from tests.unit.adopt import adopt_cases

SCHEMA = Path(__file__).parents[3] / "pillar/schema/cluster.schema.json"
CASES = adopt_cases.names()


@functools.cache
def judged(name: str) -> tuple[dict[str, Any], adopt.Adoption]:
    case = adopt_cases.load(name)
    outcome = adopt.judge(
        adopt_cases.found(case),
        accepted=case.get("accepted", ()),
        available_modules=case.get("available", adopt.AVAILABLE),
        carries_files=case.get("carries_files", False),
    )
    return case, outcome


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 30


@pytest.mark.parametrize("name", CASES)
def test_verdicts(name: str) -> None:
    case, outcome = judged(name)
    for key, wanted in case["expect"].get("verdicts", {}).items():
        row = outcome.verdict_of(key)
        assert row is not None, (key, [given.key for given in outcome.verdicts])
        if isinstance(wanted, str):
            wanted = {"verdict": wanted}
        for field, value in wanted.items():
            had = getattr(row, field)
            assert value in had if field == "reason" else had == value, (key, field, had)


@pytest.mark.parametrize("name", CASES)
def test_problems_are_these_and_no_others(name: str) -> None:
    case, outcome = judged(name)
    wanted = case["expect"]["problems"]
    said = [str(row) for row in outcome.problems]
    for text in wanted:
        assert any(_says(row, text) for row in said), f"{text!r} is not among\n" + "\n".join(said)
    extra = [row for row in said if not any(_says(row, text) for text in wanted)]
    assert not extra
    for row in outcome.problems:
        assert row.place
        assert row.what
        assert row.next_step


@pytest.mark.parametrize("name", CASES)
def test_warnings(name: str) -> None:
    case, outcome = judged(name)
    said = [str(row) for row in outcome.warnings]
    wanted = case["expect"].get("warnings", [])
    for text in wanted:
        assert any(_says(row, text) for row in said), f"{text!r} is not among\n" + "\n".join(said)
    if not wanted:
        assert said == []


@pytest.mark.parametrize("name", CASES)
def test_map_settings_and_secrets(name: str) -> None:
    case, outcome = judged(name)
    expect = case["expect"]
    for path, value in expect.get("map", {}).items():
        assert adopt_cases.at(outcome.cluster_map, path) == value, path
    for path, value in expect.get("settings", {}).items():
        assert adopt_cases.at(outcome.cluster_map["synapse"]["settings"], path) == value, path
    for key in expect.get("absent", []):
        assert key not in outcome.cluster_map["synapse"]["settings"]
    for key, value in expect.get("secrets", {}).items():
        assert outcome.secrets[key] == value


@pytest.mark.parametrize("name", CASES)
def test_every_key_has_exactly_one_verdict(name: str) -> None:
    case, outcome = judged(name)
    keys = [row.key for row in outcome.verdicts]
    assert len(keys) == len(set(keys))
    try:
        values = yaml.safe_load(case["homeserver"])
    except yaml.YAMLError:
        return
    if not isinstance(values, dict) or not outcome.cluster_map:
        return
    for key in values:
        assert any(re.match(rf"{re.escape(str(key))}($|[.\[])", row) for row in keys), key


@pytest.mark.parametrize("name", CASES)
def test_a_map_without_problems_fits_the_schema_and_its_secrets_are_there(name: str) -> None:
    case, outcome = judged(name)
    if outcome.problems or case.get("carries_files"):
        return
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    errors = list(Draft202012Validator(schema).iter_errors(outcome.cluster_map))
    assert not errors, errors
    assert clustermap.needed_secrets(outcome.cluster_map) <= set(outcome.secrets)


@pytest.mark.parametrize("name", CASES)
def test_no_secret_leaves_by_map_or_report(name: str) -> None:
    _, outcome = judged(name)
    shown = adopt.render(outcome) + repr(outcome)
    if outcome.cluster_map:
        shown += adopt.dump_map(outcome.cluster_map)
    for key, secret in outcome.secrets.items():
        if len(secret) >= 8:
            assert secret not in shown, key


@pytest.mark.parametrize("name", CASES)
def test_the_map_is_the_same_after_writing_and_reading(name: str) -> None:
    _, outcome = judged(name)
    text = adopt.dump_map(outcome.cluster_map)
    assert yaml.safe_load(text)["cluster"] == (outcome.cluster_map or None)


def _says(row: str, text: str) -> bool:
    return any(part in row for part in text.split("|"))
