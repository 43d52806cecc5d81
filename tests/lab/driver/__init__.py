"""Driver of the lab: thin, and the only part that knows systemd-nspawn."""

from __future__ import annotations

from .errors import (
    AnewError,
    CommandError,
    HostError,
    LabError,
    MachineError,
    SaltRunError,
    WaitError,
)
from .lab import Lab, LabMachine
from .machine import Machine
from .process import Result, wait_for
from .settings import PROJECT, Settings

__all__ = [
    "PROJECT",
    "AnewError",
    "CommandError",
    "HostError",
    "Lab",
    "LabError",
    "LabMachine",
    "Machine",
    "MachineError",
    "Result",
    "SaltRunError",
    "Settings",
    "WaitError",
    "wait_for",
]
