"""Every linter is content with the work tree."""

from __future__ import annotations

import subprocess

import pytest

from tests.lab.driver.checks import BIN, environment, lint_commands
from tests.lab.driver.settings import PROJECT
from tests.lab.driver.tree import listed


@pytest.mark.parametrize("words", lint_commands(listed()), ids=lambda words: words[0])
def test_linter_is_content(words: list[str]) -> None:
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=PROJECT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
