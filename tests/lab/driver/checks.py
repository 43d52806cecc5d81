"""`make lint` and `make test`: which programs, in which order."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from . import hostcheck
from .lab import Lab
from .pytest_plugin import INSIDE
from .settings import PROJECT
from .tree import listed

BIN = Path(sys.executable).parent
SUITES = ("tests/lint", "tests/unit", "tests/render", "tests/process", "tests/lab", "tests/bench")
CODE = ("tests", "salt", "formulas", "orch", "reactor")


def lint_commands(names: list[str]) -> list[list[str]]:
    """Every linter with what it looks at, out of the files of the work tree."""
    yaml = [name for name in names if name.endswith((".yaml", ".yml"))]
    sls = [name for name in names if name.endswith(".sls")]
    python = [name for name in CODE if any(known.startswith(f"{name}/") for known in names)]
    typed = [name for name in ("tests", "salt") if (PROJECT / name).is_dir()]
    commands = [["ruff", "check", *python], ["mypy", *typed]]
    if yaml:
        commands.append(["yamllint", "--strict", *yaml])
    if sls:
        commands.append(["salt-lint", *sls])
    return commands


def lint() -> int:
    """Run every linter; 0 if all are content."""
    worst = 0
    for words in lint_commands(listed()):
        done = subprocess.run(
            [str(BIN / words[0]), *words[1:]],
            cwd=PROJECT,
            env=environment(),
            timeout=600,
            check=False,
        )
        print(f"lint: {words[0]}: {'ok' if done.returncode == 0 else 'FAILED'}", flush=True)
        worst = max(worst, done.returncode)
    return worst


def environment() -> dict[str, str]:
    """The caller's environment, with the programs of .venv first."""
    return {**os.environ, "PATH": f"{BIN}:{os.environ.get('PATH', '')}"}


def pytest_command(lab: Lab, only: str | None, chosen: list[str]) -> list[str]:
    """The one pytest run, in the lab's namespace.

    Args:
        lab: whose namespace.
        only: ``soak``, ``bench`` or ``m3`` for those alone; None for everything else.
        chosen: paths or options instead of all suites.
    """
    suites = [name for name in SUITES if (PROJECT / name).is_dir()]
    marks = only or "not soak and not bench and not m3"
    command = [*lab.network.inside(), sys.executable, "-m", "pytest"]
    command += ["-p", "tests.lab.driver.pytest_plugin", "-m", marks]
    if only in ("soak", "bench"):
        # What these show is what they are run for.
        command.append("--capture=no")
    return [*command, *(chosen or suites)]


def test(lab: Lab, prepare: Callable[[], None], only: str | None, chosen: list[str]) -> int:
    """One pytest run over everything, linters included; its summary is the last word.

    Args:
        lab: the lab that the tests use.
        prepare: makes images, mirrors and network, which need the host's network.
        only: see ``pytest_command``.
        chosen: see ``pytest_command``.
    """
    lab.settings.root.mkdir(parents=True, exist_ok=True)
    hostcheck.check(lab.settings, cached=lab.mirror.ready(), running=lab.any_running)
    prepare()
    env = environment() | {INSIDE: "1", "SALTWORKS_LAB": str(lab.settings.root)}
    env["SALTWORKS_NETNS"] = lab.settings.netns
    command = pytest_command(lab, only, chosen)
    return subprocess.run(command, cwd=PROJECT, env=env, check=False).returncode
