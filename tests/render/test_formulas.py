"""Every SLS and every template renders, and what it says makes sense to Salt."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from salt.state import STATE_INTERNAL_KEYWORDS

import salt
from tests.render import trees

CASES = trees.all_cases()
SLS = trees.sls_files()
#: Keys of a chunk that are Salt's own.
INTERNAL = set(STATE_INTERNAL_KEYWORDS) | trees.REQUISITES | {
    "state", "fun", "name", "order", "__id__", "__sls__", "__env__", "__exclude_requisites__",
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case_compiles(renderer: trees.Renderer, case: trees.Case) -> None:
    chunks = renderer.compile(case)
    names = {(chunk["state"], chunk[key]) for chunk in chunks for key in ("name", "__id__")}
    plain = {name for _, name in names}
    wrong: list[str] = []
    for chunk in chunks:
        where = f"{chunk['__sls__']}: {chunk['__id__']}"
        wrong += [f"{where}: {problem}" for problem in _call_problems(renderer, chunk)]
        for keyword, kind, name in trees.requisites(chunk):
            known = (
                name in renderer.included if kind == "sls"
                else name in plain if kind == "id"
                else (kind, name) in names
            )
            if not known:
                wrong.append(f"{where}: {keyword} names {kind} {name}, which is not there")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_templates_of_a_case_render(renderer: trees.Renderer, case: trees.Case) -> None:
    for chunk in renderer.compile(case):
        if chunk.get("template") == "jinja":
            text = renderer.template(case, chunk["source"], _context(chunk))
            assert text.strip(), f"{chunk['source']} renders to nothing"
            assert "None" not in text.split(), f"{chunk['source']} renders a None:\n{text}"


def test_a_server_that_may_hold_a_logical_slot_would_start_with_it(
    renderer: trees.Renderer,
) -> None:
    """PostgreSQL does not, below that level; the slot goes after its configuration has changed."""
    seen = set()
    for case in CASES:
        for chunk in renderer.compile(case) if case.sls == "postgres.configured" else ():
            if str(chunk.get("source")).endswith("saltworks.conf.jinja"):
                text = renderer.template(case, chunk["source"], _context(chunk))
                seen.add(("older" in case.name, "wal_level = logical" in text))
    assert seen == {(True, True), (False, False)}


def test_every_template_is_rendered_by_some_case(renderer: trees.Renderer) -> None:
    used = {
        chunk["source"].removeprefix("salt://")
        for case in CASES for chunk in renderer.compile(case) if "source" in chunk
        and str(chunk["source"]).startswith("salt://")
    } | trees.referred_templates()
    there = {str(p.relative_to(trees.FORMULAS)) for p in trees.FORMULAS.glob("**/*.jinja")}
    assert there <= used, f"no case uses {sorted(there - used)}"


def test_what_a_program_imports_from_its_own_folder_is_put_beside_it(
    renderer: trees.Renderer,
) -> None:
    for case in CASES:
        put = {
            Path(chunk["name"]): trees.FORMULAS / chunk["source"].removeprefix("salt://")
            for chunk in renderer.compile(case) if str(chunk.get("source")).endswith(".py")
        }
        for target, source in put.items():
            names = re.findall(r"^(?:from|import) (\w+)", source.read_text("utf-8"), re.M)
            own = {name for name in names if source.with_name(f"{name}.py").exists()}
            missing = {name for name in own if target.with_name(f"{name}.py") not in put}
            assert not missing, f"{case}: {target} imports {sorted(missing)}, which is not there"


def test_every_case_is_of_a_path_that_exists() -> None:
    gone = [path for path in trees.load_cases() if path != "default"
            and not (trees.ROOT / path).exists()]
    assert not gone, f"cases.yaml has cases of {gone}"


@pytest.mark.parametrize(
    "formula", sorted(path.name for path in trees.FORMULAS.iterdir() if path.is_dir())
)
def test_formula_knows_only_its_own_key(formula: str) -> None:
    folder = trees.FORMULAS / formula
    assert set(trees.example_pillar(formula)) == {formula}
    assert (folder / "README.md").is_file()
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted(folder.glob("**/*"))
        if path.suffix in {".sls", ".jinja"}
    )
    keys = re.findall(r"pillar(?:\.get'\]\(|\[)'(\w+)|_pillar: (\w+)", text)
    assert {one or other for one, other in keys} == {formula}


def test_no_state_costs_a_guard(renderer: trees.Renderer) -> None:
    guarded = {
        f"{chunk['__sls__']}: {chunk['__id__']}"
        for case in CASES for chunk in renderer.compile(case)
        if {"unless", "onlyif", "creates"} & set(chunk)
    }
    assert not guarded, f"unless/onlyif/creates cost 0.8 s a run: {sorted(guarded)}"


def test_orchestrations_name_what_exists(renderer: trees.Renderer) -> None:
    wrong: list[str] = []
    for case in CASES:
        if case.sls.startswith("orch."):
            wrong += [
                f"{chunk['__sls__']}: {chunk['__id__']}: {problem}"
                for chunk in renderer.compile(case) if chunk["state"] == "salt"
                for problem in _step_problems(renderer, chunk)
            ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("stage", "sls", "steps"),
    [
        ("database moving", "orch.m3.database.apply", ["begun", "switched", "keyed", "converged"]),
        ("database moved", "orch.m3.database.apply", ["begun", "switched", "keyed", "converged"]),
        (
            "media moving back",
            "orch.m3.media.rollback",
            ["returnable", "switched-back", "recorded-back", "converged-back"],
        ),
        ("front moved, second run", "orch.m3.media.apply", ["keyed", "converged"]),
        ("redis moving", "orch.m4.workers.apply", ["begun", "switched", "keyed", "converged"]),
        # Nothing takes up a new certificate while a window is open.
        ("media moving, database achieved", "orch.m3.database.apply", ["converged"]),
        ("back upcoming, achieved", "orch.m3.database.apply", ["keyed", "kept", "converged"]),
        ("back upcoming, achieved", "orch.m3.media.apply", ["keyed", "converged"]),
        (
            "redis moving back",
            "orch.m4.workers.rollback",
            ["returnable", "switched-back", "recorded-back", "converged-back"],
        ),
    ],
)
def test_a_run_does_what_is_left_to_do(
    renderer: trees.Renderer, stage: str, sls: str, steps: list[str]
) -> None:
    """A run that died in the window goes on there: what takes its time is not done again before."""
    case = next(case for case in CASES if (case.sls, case.name) == (sls, stage))
    name = "-".join(sls.split(".")[1:3])
    chunks = [str(chunk["__id__"]) for chunk in renderer.compile(case)]
    assert [row for row in chunks if row != f"{name}-prechecked"] == [
        f"{name}-{step}" for step in steps
    ]


def _step_problems(renderer: trees.Renderer, chunk: dict[str, Any]) -> list[str]:
    if chunk["fun"] == "state":
        named = chunk.get("sls") or chunk.get("mods") or []
        wanted = named if isinstance(named, list) else str(named).split(",")
        return [f"no SLS {sls}" for sls in wanted if sls.strip() not in SLS]
    if chunk["fun"] == "function" and chunk["name"] not in renderer.state.functions:
        return [f"no execution function {chunk['name']}"]
    return _runner_problems(chunk) if chunk["fun"] == "runner" else []


def _context(chunk: dict[str, Any]) -> dict[str, Any]:
    return {**chunk.get("defaults", {}), **chunk.get("context", {})}


def _call_problems(renderer: trees.Renderer, chunk: dict[str, Any]) -> list[str]:
    signature = renderer.signature(f"{chunk['state']}.{chunk['fun']}")
    parameters = signature.parameters.values()
    given = set(chunk) - INTERNAL
    problems = [
        f"{chunk['state']}.{chunk['fun']} needs {p.name}" for p in parameters
        if p.default is inspect.Parameter.empty and p.name not in given | {"name"}
        and p.kind is not inspect.Parameter.VAR_KEYWORD
        and p.kind is not inspect.Parameter.VAR_POSITIONAL
    ]
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        problems += [
            f"{chunk['state']}.{chunk['fun']} has no argument {name}"
            for name in sorted(given - {p.name for p in parameters} - {"names"})
        ]
    return problems


def _runner_problems(chunk: dict[str, Any]) -> list[str]:
    module, _, function = str(chunk["name"]).partition(".")
    path = trees.ROOT / "salt" / "_runners" / f"{module}.py"
    if not path.is_file():
        shipped = Path(salt.__file__).parent / "runners" / f"{module}.py"
        if not shipped.is_file():
            return [f"no runner {module}"]
        path = shipped
    defined = {
        node.name for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef)
    }
    return [] if {function, f"{function}_"} & defined else [f"no runner {module}.{function}"]
