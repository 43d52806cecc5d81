"""pytest-testinfra on the lab's machines."""

from __future__ import annotations

import shlex
from typing import Any

from testinfra.backend import base
from testinfra.host import Host

from .machine import Machine
from .process import execute


class NspawnBackend(base.BaseBackend):
    """Runs each command through the driver, so it survives a reboot of the machine."""

    NAME = "nspawn"

    def __init__(self, machine: Machine, **kwargs: Any) -> None:
        super().__init__(machine.name, **kwargs)
        self.machine = machine

    def run(self, command: str, *args: str, **_: Any) -> base.CommandResult:
        text = self.get_command(command, *args)
        words = [*self.machine.enter(), "/bin/sh", "-c", text]
        out, err, code = execute(words, timeout=60)
        return self.result(code, shlex.join(words).encode(), out, err)


def machine_host(machine: Machine) -> Host:
    """A testinfra host for a running machine."""
    return Host(NspawnBackend(machine))
