"""What can go wrong in the lab, each with the name of the thing and the next step."""

from __future__ import annotations


class LabError(Exception):
    """Something of the lab failed; the text says what, where and what to do."""


class AnewError(LabError):
    """To run the same again would fail again; the text says how to begin anew."""


class HostError(LabError):
    """The host cannot carry the lab. ``problems`` holds every reason found."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        listed = "\n".join(f"  - {problem}" for problem in problems)
        super().__init__(f"this host cannot carry the lab:\n{listed}")


class CommandError(LabError):
    """A command on the host failed or ran out of time."""


class WaitError(LabError):
    """A bounded wait ran out; the text says for what and how long."""


class MachineError(LabError):
    """A command in a machine failed.

    Attributes:
        machine: name of the machine.
        command: the command as text.
        returncode: its exit code, or -1 when the time ran out.
    """

    def __init__(self, machine: str, command: str, returncode: int, output: str) -> None:
        self.machine = machine
        self.command = command
        self.returncode = returncode
        tail = "\n".join(output.strip().splitlines()[-15:])
        ended = "ran out of time" if returncode == -1 else f"exit code {returncode}"
        super().__init__(f"{machine}: `{command[:300]}`: {ended}\n{tail}")


class SaltRunError(LabError):
    """A ``salt-run`` or ``salt`` call failed.

    Attributes:
        failures: one line per failed step: machine, state and comment.
        log: path of the full log on the host.
        answer: the parsed JSON, where there was one.
    """

    def __init__(self, call: str, failures: list[str], log: str, answer: object = None) -> None:
        self.failures = failures
        self.log = log
        self.answer = answer
        listed = "\n".join(f"  - {line}" for line in failures) or "  - no step named itself"
        super().__init__(f"{call} failed:\n{listed}\n  full log: {log}")
