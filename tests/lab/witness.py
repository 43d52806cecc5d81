"""The witness: a real Matrix client of several users, which chats for the whole of a milestone.

Through the public name, with the name looked up for each new connection, each user sends numbered
messages in a shared room, long-polls /sync, sends numbered to-device messages, uploads media and
does what clients ordinarily do besides. When told to stop it waits until everything that was
acknowledged has been shown to everybody, reads the room's history and all its media back, and
reports. What the words of the report mean stands in `witness_ledger`.

    python -m tests.lab.witness --url https://chat.lale.test --ca .lab/ca.pem \
        --seed seed.json --out .lab/reports/m1.json

It prints `ready` when all users chat, and stops on SIGTERM, SIGINT, a line `stop` on its standard
input, when the file of `--stop-file` appears, or after `--seconds`. Exit code 0: a report was
written (whatever it says); 3: it could not begin, or could not write the report.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.lab.client import ROOT, MatrixError
from tests.lab.witness_chat import POLL_SECONDS, Witness, registered
from tests.lab.witness_table import print_report, verdict

__all__ = ["Witness", "WitnessProcess", "main", "print_report", "registered", "verdict"]

Json = dict[str, Any]

READY_SECONDS = 120
STOP_SECONDS = 420


class WitnessProcess:
    """The witness as a process of its own, which goes on if whoever started it dies.

    options: the command's options (`--url`, `--out`, ...). prefix: a command that it is started by,
    such as `ip netns exec saltworks`. log: file for what it says.
    """

    def __init__(
        self, options: Sequence[str], out: Path, log: Path, prefix: Sequence[str] = ()
    ) -> None:
        self.command = [*prefix, sys.executable, "-m", "tests.lab.witness", *options]
        self.command += ["--out", str(out)]
        self.out = out
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts it and waits until all users chat. Raises RuntimeError with what it said."""
        self.out.unlink(missing_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + READY_SECONDS
        while b"ready" not in self.log.read_bytes().splitlines():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                said = self.log.read_text(errors="replace").strip()[-2000:]
                raise RuntimeError(
                    f"the witness was not ready after {READY_SECONDS} s at most; it said in "
                    f"{self.log}: {said or 'nothing'}"
                )
            time.sleep(0.1)

    def stop(self) -> Json:
        """Tells it to end, waits for its report and returns it. Raises RuntimeError without one."""
        if self._process is None:
            raise RuntimeError("the witness was never started: call start() first")
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        if not self.out.exists():
            raise RuntimeError(
                f"the witness left no report in {self.out} within {STOP_SECONDS} s; see {self.log}"
            )
        report: Json = json.loads(self.out.read_text())
        return report

    def kill(self) -> None:
        """Ends it without a report."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)


def write_report(report: Json, out: Path) -> None:
    """Writes a report at once (a reader never sees half of one)."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    part.replace(out)


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.witness")
    parser.add_argument("--url", required=True, help="the public address, such as https://...")
    parser.add_argument("--ca", help="file with the authority that signed the certificate")
    parser.add_argument("--seed", type=Path, help="seed.json; its `witness` users are used")
    parser.add_argument("--shared-secret-file", type=Path, help="make own users by this secret")
    parser.add_argument("--admin-url", help="where the admin API is served (default: --url)")
    parser.add_argument("--users", type=int, default=4)
    parser.add_argument("--rate", type=float, default=4.0, help="messages a second, of all users")
    parser.add_argument("--poll-seconds", type=int, default=POLL_SECONDS, help="of a long poll")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stop-file", type=Path)
    parser.add_argument("--seconds", type=float, default=3600, help="stops by itself after this")
    parser.add_argument("--print", action="store_true", help="print the report as a table too")
    return parser.parse_args(given)


def _users(given: argparse.Namespace) -> list[Json]:
    seed = json.loads(given.seed.read_text()) if given.seed else {}
    if seed.get("witness"):
        return list(seed["witness"])[: given.users]
    secret = seed.get("registration_shared_secret")
    if given.shared_secret_file:
        secret = given.shared_secret_file.read_text().strip()
    if not secret:
        raise ValueError(
            "no users for the witness: pass --seed with a `witness` list, or --shared-secret-file"
        )
    run = secrets.token_hex(3)
    return registered(given.admin_url or given.url, given.ca, secret, given.users, run)


def _wait_for_the_end(stop: threading.Event, given: argparse.Namespace) -> None:
    """Returns when told to stop, by any of the ways."""
    # A terminal is left alone, so that a witness in the background is not stopped by it.
    listening = not os.isatty(0)
    deadline = time.monotonic() + given.seconds
    while not stop.is_set() and time.monotonic() < deadline:
        if given.stop_file and given.stop_file.exists():
            return
        if listening and select.select([0], [], [], 0.3)[0]:
            said = os.read(0, 4096)
            if b"stop" in said.split():
                return
            # The end of the input is no order: the witness must outlive whoever started it.
            listening = bool(said)
        elif not listening:
            stop.wait(0.3)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    given = _arguments(arguments)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        witness = Witness(
            given.url, _users(given), given.ca, rate=given.rate, poll_seconds=given.poll_seconds
        )
        witness.start()
    except (MatrixError, OSError, ValueError) as error:
        print(f"the witness could not begin at {given.url}: {error}", file=sys.stderr)
        return 3
    print("ready", flush=True)
    _wait_for_the_end(stop, given)
    report = witness.stop()
    try:
        write_report(report, given.out)
    except OSError as error:
        print(f"the witness could not write {given.out}: {error}", file=sys.stderr)
        return 3
    if given.print:
        print_report(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
