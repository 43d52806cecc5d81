"""pytest-testinfra on the lab's machines: ``machine_host("legacy")``."""

from __future__ import annotations

import shlex
from typing import Any

import testinfra
import testinfra.backend
from testinfra.backend import base
from testinfra.host import Host

from .lab import Lab
from .process import execute


class NspawnBackend(base.BaseBackend):
    """Runs each command through the driver, so it survives a reboot of the machine."""

    NAME = "nspawn"

    def __init__(self, name: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(name, *args, **kwargs)
        self.machine = Lab.load().machine(name)

    def run(self, command: str, *args: str, **_: Any) -> base.CommandResult:
        text = self.get_command(command, *args)
        words = [*self.machine.enter(), "/bin/sh", "-c", text]
        out, err, code = execute(words, timeout=60)
        return self.result(code, shlex.join(words).encode(), out, err)


def register() -> None:
    """Make ``nspawn://<machine>`` known to testinfra."""
    testinfra.backend.BACKENDS[NspawnBackend.NAME] = f"{__name__}.NspawnBackend"


def machine_host(name: str) -> Host:
    """A testinfra host for a running machine."""
    register()
    return testinfra.get_host(f"nspawn://{name}")
