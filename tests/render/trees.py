"""Render the project's SLS files and templates with Salt's own machinery, without a minion.

A case is a pillar (and, if need be, answers of execution functions) for a part of the
tree; ``cases.yaml`` holds them, a formula's ``pillar.example`` is the ground they
stand on. See :func:`cases_for`.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
from collections import UserDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import salt.config
import salt.state
import salt.utils.dictupdate
import salt.utils.secret
import salt.utils.templates
import yaml

from tests import cluster
from tests.render import stages

ROOT = Path(__file__).resolve().parents[2]
FORMULAS = ROOT / "formulas"
CASES = Path(__file__).with_name("cases.yaml")

#: Keywords of a state that name other states.
REQUISITES = frozenset(
    {"require", "require_any", "watch", "watch_any", "onchanges", "onchanges_any", "onfail",
     "onfail_any", "onfail_all", "prereq", "listen", "use"}
)


@dataclass(frozen=True)
class Case:
    """One rendering: which SLS, with what pillar, under what name."""

    sls: str
    path: Path
    name: str
    pillar: Mapping[str, Any]
    functions: Mapping[str, Any] = field(default_factory=dict)
    grains: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.sls}[{self.name}]"


def sls_files() -> dict[str, Path]:
    """Every SLS of formulas, roles and orchestrations, by the name that Salt knows it by."""
    found: dict[str, Path] = {}
    for base, pattern in (
        (FORMULAS, "*/**/*.sls"), (ROOT / "salt", "roles/**/*.sls"), (ROOT, "orch/**/*.sls"),
    ):
        for path in sorted(base.glob(pattern)):
            parts = list(path.relative_to(base).with_suffix("").parts)
            if parts[-1] == "init":
                parts.pop()
            found[".".join(parts)] = path
    return found


def load_cases() -> dict[str, dict[str, Any]]:
    """The content of ``cases.yaml``."""
    loaded = yaml.safe_load(CASES.read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


def example_pillar(formula: str) -> dict[str, Any]:
    """A formula's ``pillar.example``."""
    loaded = yaml.safe_load((FORMULAS / formula / "pillar.example").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict), f"{formula}/pillar.example is no mapping"
    return loaded


def cases_for(sls: str, path: Path, cases: Mapping[str, Any]) -> list[Case]:
    """The cases of one SLS: those of its file, else of the nearest folder, else the default.

    :param cases: content of ``cases.yaml``: path below the project → case name → case.
    """
    relative = path.relative_to(ROOT)
    if relative.parts == ("salt", "roles", "init.sls"):
        # It includes the one of the machine's role: once for each.
        return [
            replace(cases_for(sls, one, cases)[0], path=path, name=one.parent.name)
            for one in sorted(path.parent.glob("*/init.sls"))
        ]
    if relative.parts[0] != "formulas":
        return [
            Case(sls, path, name, pillar, functions)
            for name, pillar, functions in [
                *stages.pillars(relative), *cluster.pillars(relative),
            ]
        ]
    places = [str(relative), *(str(parent) for parent in relative.parents if parent.name)]
    chosen = next((cases[place] for place in places if place in cases), cases["default"])
    ground = example_pillar(relative.parts[1])
    made = []
    for name, row in chosen.items():
        pillar = copy.deepcopy(ground)
        changes = copy.deepcopy(row.get("pillar", {}))
        salt.utils.dictupdate.update(pillar, changes, merge_lists=False)
        for dropped in row.get("drop", []):
            _drop(pillar, dropped.split("."))
        made.append(
            Case(sls, path, name, pillar, row.get("functions", {}), row.get("grains", {}))
        )
    return made


def _drop(pillar: dict[str, Any], keys: list[str]) -> None:
    for key in keys[:-1]:
        pillar = pillar[key]
    pillar.pop(keys[-1], None)


def all_cases() -> list[Case]:
    """Every case of every SLS."""
    cases = load_cases()
    return [case for sls, path in sls_files().items() for case in cases_for(sls, path, cases)]


#: Where Salt begins to number states that name no order of their own.
FIRST_ORDER = 10000


class Pillar(UserDict[str, Any]):
    """The one mapping that all loaded modules hold; of a plain dict each would get a copy."""


class Renderer:
    """Salt's state compiler over the tree; one for all cases, as loading it is slow."""

    def __init__(self, scratch: Path) -> None:
        opts = salt.config.minion_config(None)
        # Only what Salt serves: listing the whole project, its lab included, takes minutes.
        served = scratch / "served"
        served.mkdir()
        (served / "orch").symlink_to(ROOT / "orch")
        (served / "roles").symlink_to(ROOT / "salt" / "roles")
        roots = [FORMULAS, served]
        opts.update(
            id="one",
            file_client="local",
            file_roots={"base": [str(root) for root in roots]},
            pillar_roots={"base": [str(scratch / "pillar")]},
            cachedir=str(scratch / "cache"),
            root_dir=str(scratch),
            extension_modules=str(scratch / "extmods"),
            module_dirs=[str(ROOT / "salt" / "_modules")],
            states_dirs=[str(ROOT / "salt" / "_states")],
            enable_fqdns_grains=False,
            state_top="no-top.sls",
            grains={"id": "one", "os": "Debian", "os_family": "Debian", "oscodename": "bookworm",
                    "osmajorrelease": 12, "kernel": "Linux", "saltversion": "3008.3",
                    "host": "one", "fqdn": "one", "init": "systemd", "osarch": "amd64",
                    "mem_total": 4096, "num_cpus": 2},
        )
        self.opts = opts
        self.included: set[str] = set()
        self._minions: dict[str, salt.state.HighState] = {}
        self._compiled: dict[str, tuple[list[dict[str, Any]], set[str]]] = {}

    @property
    def state(self) -> Any:
        """A minion's state system, of no case."""
        return self._minion({}).state

    def compile(self, case: Case) -> list[dict[str, Any]]:
        """The state chunks of a case.

        :raises AssertionError: with Salt's own messages, when it does not render.
        """
        if str(case) not in self._compiled:
            with self._minion_of(case) as minion:
                self._compiled[str(case)] = _compile(minion, case.sls)
        chunks, self.included = self._compiled[str(case)]
        return copy.deepcopy(chunks)

    def template(self, case: Case, source: str, context: Mapping[str, Any]) -> str:
        """One template file as ``file.managed`` would render it.

        :param source: ``salt://`` URL below the formulas.
        """
        path = FORMULAS / source.removeprefix("salt://")
        assert path.is_file(), f"{source} does not exist"
        with self._minion_of(case) as minion:
            opts = minion.state.opts
            done = salt.utils.templates.JINJA(
                str(path), to_str=True, salt=minion.state.functions, opts=opts,
                grains=opts["grains"], pillar=opts["pillar"], saltenv="base",
                context=dict(context), sls=case.sls, fileclient=minion.client,
            )
        assert done["result"], f"{source}: {done['data']}"
        return str(done["data"])

    def _minion(self, grains: Mapping[str, Any]) -> salt.state.HighState:
        """One minion for all cases of the same grains: what Salt loads depends on these alone."""
        key = repr(sorted(grains.items()))
        if key not in self._minions:
            opts = copy.deepcopy(self.opts)
            opts["grains"].update(grains)
            # Given one, Salt compiles none; each case puts its own in.
            self._minions[key] = salt.state.HighState(
                opts, initial_pillar=Pillar(of="no case"), mocked=True
            )
        return self._minions[key]

    @contextlib.contextmanager
    def _minion_of(self, case: Case) -> Iterator[salt.state.HighState]:
        """The minion with a case's pillar and answers of functions, and nothing of another's."""
        minion = self._minion(case.grains)
        state = minion.state
        pillar = state.opts["pillar"]
        assert state.functions.pack["__pillar__"] is pillar
        pillar.clear()
        pillar.update(salt.utils.secret.hide(copy.deepcopy(dict(case.pillar))))
        # The function itself: what Salt hands out looks its function up under this name, for ever.
        honest = {
            name: getattr(state.functions.get(name), "func", None) for name in case.functions
        }
        for name, answer in case.functions.items():
            state.functions[name] = lambda *_, _answer=answer, **__: copy.deepcopy(_answer)
        try:
            yield minion
        finally:
            for name, function in honest.items():
                if function is None:
                    del state.functions[name]
                else:
                    state.functions[name] = function

    def signature(self, function: str) -> inspect.Signature:
        """Signature of a state function, ``module.function``.

        :raises AssertionError: there is none of that name.
        """
        assert function in self.state.states, f"no state {function}"
        return inspect.signature(self.state.states[function])


def _compile(minion: salt.state.HighState, sls: str) -> tuple[list[dict[str, Any]], set[str]]:
    """The state chunks of an SLS, and the names of all SLS that it includes."""
    state = minion.state
    minion.building_highstate = type(minion.building_highstate)()
    state.dependency_dag = type(state.dependency_dag)()
    state._processed_sls_files = set()
    minion.iorder = FIRST_ORDER
    high, errors = minion.render_highstate({"base": [sls]})
    assert not errors, "\n".join(map(str, errors))
    included = {body["__sls__"] for body in high.values() if isinstance(body, dict)} | {sls}
    high, errors = state.reconcile_extend(high)
    assert not errors, "\n".join(map(str, errors))
    errors = state.verify_high(high)
    assert not errors, "\n".join(map(str, errors))
    high, errors = state.requisite_in(high)
    assert not errors, "\n".join(map(str, errors))
    chunks, errors = state.compile_high_data(high)
    assert not errors, "\n".join(map(str, errors))
    return list(chunks), included


def requisites(chunk: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """``(keyword, kind, name)`` of every state that a chunk names."""
    for keyword in REQUISITES & set(chunk):
        for row in chunk[keyword]:
            pairs = row.items() if isinstance(row, dict) else [("id", row)]
            for kind, name in pairs:
                yield keyword, kind, name


def referred_templates() -> set[str]:
    """Formula files that another template imports, as paths below the formulas."""
    found: set[str] = set()
    for path in FORMULAS.glob("**/*"):
        if path.is_file() and path.suffix in {".sls", ".jinja"}:
            text = path.read_text(encoding="utf-8")
            found.update(re.findall(r"{%-?\s*(?:from|import|include)\s+'([^']+)'", text))
    return found
