"""Bounded commands and bounded waits on the host."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import CommandError, WaitError

Command = Sequence[str | Path]


@dataclass(frozen=True)
class Result:
    """What a command said: text of both streams and its exit code."""

    stdout: str
    stderr: str
    returncode: int

    @property
    def ok(self) -> bool:
        return self.returncode == 0


def text_of(command: Command) -> str:
    """The command as one would type it."""
    return shlex.join(str(part) for part in command)


def execute(
    command: Command,
    *,
    timeout: float,
    data: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> tuple[bytes, bytes, int]:
    """Run a command in a process group of its own; at the time limit kill the whole group.

    Returns:
        stdout, stderr and the exit code, which is -1 when the time ran out.
    """
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=subprocess.PIPE if data is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(env) if env is not None else None,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired:
        kill_group(process.pid)
        out, err = process.communicate()
        return out, err + f"\n(time limit of {timeout:g} s reached)".encode(), -1
    except BaseException:
        kill_group(process.pid)
        process.wait()
        raise
    return out, err, process.returncode


def kill_group(pid: int) -> None:
    """SIGKILL to the process group that ``pid`` leads."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def host(
    command: Command,
    *,
    check: bool = True,
    timeout: float = 60,
    input: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
) -> Result:
    """Run a command on the host.

    Raises:
        CommandError: with the last lines of output, if ``check`` and it failed.
    """
    data = input.encode() if input is not None else None
    out, err, code = execute(command, timeout=timeout, data=data, env=env, cwd=cwd)
    result = Result(out.decode(errors="replace"), err.decode(errors="replace"), code)
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file:
            file.write(f"$ {text_of(command)}\n{result.stdout}{result.stderr}\n[{code}]\n")
    if check and code != 0:
        tail = "\n".join((result.stdout + result.stderr).strip().splitlines()[-15:])
        where = f"\nfull log: {log}" if log else ""
        raise CommandError(f"host: `{text_of(command)[:400]}`: exit code {code}\n{tail}{where}")
    return result


def wait_for(
    probe: Callable[[], object], seconds: float, what: str, interval: float = 0.1
) -> object:
    """Poll until ``probe`` gives something true, and return that.

    Raises:
        WaitError: after ``seconds``, naming ``what`` was waited for.
    """
    end = time.monotonic() + seconds
    while True:
        found = probe()
        if found:
            return found
        if time.monotonic() >= end:
            raise WaitError(f"waited {seconds:g} s for {what}, in vain")
        time.sleep(interval)
