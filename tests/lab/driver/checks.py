"""`make lint` and `make test`: which programs, in which order."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from . import hostcheck
from .lab import Lab
from .pytest_plugin import INSIDE
from .settings import PROJECT
from .tree import listed

BIN = Path(sys.executable).parent
SUITES = ("tests/lint", "tests/unit", "tests/render", "tests/process", "tests/lab", "tests/bench")
BESIDE = ("tests/process", "tests/lint", "tests/unit", "tests/render")
"""What needs no machine; first what takes longest, while M1 runs, whose bound bears it best."""
CODE = ("tests", "salt", "src", "formulas", "orch", "reactor")

SOME_FAILED, FEW = 1, 5
"""pytest's exit code when it ran, and tests failed; more of them than this are no starved ones."""


def lint_commands(names: list[str]) -> list[list[str]]:
    """Every linter with what it looks at, out of the files of the work tree."""
    yaml = [name for name in names if name.endswith((".yaml", ".yml"))]
    sls = [name for name in names if name.endswith(".sls")]
    python = [name for name in CODE if any(known.startswith(f"{name}/") for known in names)]
    typed = [name for name in ("tests", "salt", "src") if (PROJECT / name).is_dir()]
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


def pytest_command(
    lab: Lab, only: str | None, chosen: Sequence[str], more: str = ""
) -> list[str]:
    """A pytest run, in the lab's namespace.

    Args:
        lab: whose namespace.
        only: ``soak`` or ``bench`` for those alone; None for everything else.
        chosen: paths or options instead of all suites.
        more: a further condition on the tests' marks.
    """
    suites = [name for name in SUITES if (PROJECT / name).is_dir()]
    marks = only or f"not soak and not bench{more}"
    command = [*lab.network.inside(), sys.executable, "-m", "pytest"]
    command += ["-p", "tests.lab.driver.pytest_plugin", "-m", marks]
    if only:
        # What these show is what they are run for.
        command.append("--capture=no")
    else:
        # The whole has a bound: where its time goes is to be seen.
        command.append("--durations=40")
    return [*command, *(chosen or suites)]


def test(lab: Lab, prepare: Callable[[], None], only: str | None, chosen: list[str]) -> int:
    """All suites, linters included, or those chosen; the last word is pytest's summary.

    Of all of them, those that need no machine run beside the others and are shown at the end. They
    get what CPU is left over, which may be none for seconds: what has failed then is judged by a
    run of its own, and both are shown. What is about seconds (``alone``) waits for the end.

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
    if only or chosen:
        return _run(pytest_command(lab, only, chosen), env)
    cache = lab.settings.logs / "beside"
    shutil.rmtree(cache, ignore_errors=True)
    kept = ["-o", f"cache_dir={cache}"]
    without = [*pytest_command(lab, None, BESIDE, " and not alone"), *kept]
    stages = [*lab.network.inside(), sys.executable, "-m", "tests.lab.stage"]
    with (
        # What tests of machines begin with; a test that needs it waits, or makes it itself.
        beside(lab, "stages", stages, env),
        beside(lab, "beside", without, env) as others,
    ):
        machines = _run(pytest_command(lab, None, [s for s in SUITES if s not in BESIDE]), env)
        others.wait()
    print((lab.settings.logs / "beside.log").read_text(), flush=True)
    rest = others.returncode
    failed = _failed(cache)
    if rest == SOME_FAILED and 0 < len(failed) <= FEW:
        print("what has failed with the CPU left over runs once more, by itself:", flush=True)
        rest = _run([*without, "--last-failed"], env)
        print(f"failed beside the machines: {', '.join(failed)}; see both runs", flush=True)
    alone = _run(pytest_command(lab, None, BESIDE, " and alone"), env)
    for name, code in (("machines", machines), ("seconds", alone)):
        print(f"tests of {name}: {'ok' if code == 0 else 'FAILED, see above'}", flush=True)
    # One that a signal has ended has a negative code.
    return 0 if machines == rest == alone == 0 else 1


def _failed(cache: Path) -> list[str]:
    """The tests that failed in the run with this cache of pytest's, by name."""
    file = cache / "v/cache/lastfailed"
    return sorted(json.loads(file.read_text())) if file.exists() else []


def _run(command: list[str], env: Mapping[str, str]) -> int:
    return subprocess.run(command, cwd=PROJECT, env=env, check=False).returncode


@contextlib.contextmanager
def beside(
    lab: Lab, name: str, command: list[str], env: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that gets what the machine has left over, so that no measured second suffers.

    It is ended with the block. Args:
        lab: in whose logs its output goes.
        name: of the log, without suffix.
        command: what to run.
        env: its environment.
    """
    lab.settings.logs.mkdir(parents=True, exist_ok=True)
    with (lab.settings.logs / f"{name}.log").open("w") as log:
        process = subprocess.Popen(
            ["chrt", "--idle", "0", *command],
            cwd=PROJECT,
            env=env,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
            process.wait(60)
