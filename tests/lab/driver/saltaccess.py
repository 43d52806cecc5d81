"""Salt in the lab: configuration, preseeded keys, and calls with a clear verdict."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .authority import rsa_pair
from .errors import SaltRunError, WaitError
from .machine import Machine
from .process import Result, kill_group
from .saltanswer import parse_json, verdict
from .settings import MASTER, Settings

OnEvent = Callable[[str, dict[str, Any]], None]
DATA = Path(__file__).parent / "data"
LISTENER = DATA / "listener.py"
CALL = DATA / "call.py"
ANSWERING = DATA / "answering.py"

MASTER_CONF = """\
# Written by the lab. The project's own settings are in master.d.
interface: {address}
log_level: warning
log_level_logfile: info
enable_fqdns_grains: False
"""

MINION_CONF = """\
# Written by the lab.
id: {name}
master: {master}
acceptance_wait_time: 1
acceptance_wait_time_max: 2
random_reauth_delay: 1
recon_default: 100
recon_max: 1000
recon_randomize: False
auth_timeout: 5
auth_tries: 30
auth_safemode: False
master_tries: -1
request_channel_timeout: 15
tcp_keepalive_idle: 10
tcp_keepalive_cnt: 3
tcp_keepalive_intvl: 3
enable_fqdns_grains: False
grains_cache: False
mine_enabled: False
log_level: warning
log_level_logfile: info
"""


def configure(settings: Settings, name: str, upper: Path, minions: list[str]) -> None:
    """Write Salt's configuration and keys into a machine that is not running yet.

    The master gets the public keys of ``minions`` as accepted.
    """
    keys = settings.root / "keys"
    etc = upper / "etc" / "salt"
    for folder in ("minion.d", "pki/minion"):
        (etc / folder).mkdir(parents=True, exist_ok=True)
    (etc / "minion").write_text(MINION_CONF.format(name=name, master=MASTER))
    private, public = rsa_pair(keys, f"minion-{name}")
    master_private, master_public = rsa_pair(keys, "master")
    _put(etc / "pki/minion/minion.pem", private, 0o400)
    _put(etc / "pki/minion/minion.pub", public, 0o644)
    _put(etc / "pki/minion/minion_master.pub", master_public, 0o644)
    if name == MASTER:
        (etc / "master.d").mkdir(exist_ok=True)
        (etc / "master").write_text(MASTER_CONF.format(address=settings.addresses[MASTER]))
        (etc / "pki/master/minions").mkdir(parents=True, exist_ok=True)
        (etc / "pki/master").chmod(0o700)
        _put(etc / "pki/master/master.pem", master_private, 0o400)
        _put(etc / "pki/master/master.pub", master_public, 0o644)
        for minion in minions:
            _put(etc / "pki/master/minions" / minion, rsa_pair(keys, f"minion-{minion}")[1], 0o644)


def _put(path: Path, data: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    path.chmod(mode)


@dataclass
class SaltAccess:
    """Calls to the master of a running lab."""

    settings: Settings
    master: Machine

    def reject(self, minion: str) -> None:
        """Forget a minion's key."""
        self.master.run(["rm", "-f", f"/etc/salt/pki/master/minions/{minion}"])

    def accept(self, minion: str) -> None:
        """Put a further minion's public key among the accepted ones."""
        public = rsa_pair(self.settings.root / "keys", f"minion-{minion}")[1]
        self.master.write(f"/etc/salt/pki/master/minions/{minion}", public)

    def run(
        self,
        function: str,
        *args: str,
        pillar: dict[str, Any] | None = None,
        timeout: float = 600,
        test: bool = False,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """``salt-run function args`` on the master.

        Args:
            function: name of the runner function.
            args: its arguments, as typed on a command line.
            pillar: given as ``pillar=``.
            timeout: seconds.
            test: adds ``test=True``.
            on_event: called with tag and data of each event while it runs.

        Returns:
            The parsed JSON. A value that is no mapping comes as ``{"return": value}``.

        Raises:
            SaltRunError: if it failed in any way, missing functions included.
        """
        words = ["salt-run", "--out=json", "--log-level=warning", function, *args]
        if pillar is not None:
            words.append(f"pillar={json.dumps(pillar)}")
        if test:
            words.append("test=True")
        with _Listening(self.master, on_event):
            answer = self._call(words, timeout)
        return answer if isinstance(answer, dict) else {"return": answer}

    def call(
        self,
        target: str,
        function: str,
        /,
        *args: Any,
        timeout: float = 60,
        check: bool = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """One function on minions: each one's answer by its id.

        Args:
            target: a glob, or a comma list of ids.
            function: name of the execution function.
            args: its arguments; strings stay strings.
            timeout: seconds to wait for answers.
            check: raise for a failure; otherwise give whatever came.
            kwargs: its keyword arguments.

        Raises:
            SaltRunError: if a minion failed (any exit code but 0) or did not answer.
        """
        names = [] if set(target) & set("*?[") else target.split(",")
        request = {
            "target": names or target,
            "type": "list" if names else "glob",
            "function": function,
            "args": list(args),
            "kwargs": kwargs,
            "timeout": timeout,
        }
        shown = shlex.join(["salt", target, function, *map(str, args), *kwargs])
        result, log = self._logged(
            ["/opt/salt/bin/python", "-c", CALL.read_text()],
            shown,
            timeout + 30,
            input=json.dumps(request),
        )
        answers = self._parsed(result, shown, log, timeout)
        full = {name: answer for name, answer in answers.items() if isinstance(answer, dict)}
        plain = {name: answer.get("ret") for name, answer in full.items()}
        problems = [f"{name}: no answer in {timeout:g} s" for name in names if name not in full]
        if not names and not full:
            problems.append(f"no minion matches {target} and answers")
        for name, answer in full.items():
            code = answer.get("retcode", 0)
            found = verdict({name: answer.get("ret")}, int(code or 0), name)
            problems += found
        if problems and check:
            raise SaltRunError(f"{self.master.name}: {shown[:300]}", problems, str(log), plain)
        return plain

    def answering(self, minions: list[str], seconds: float = 90) -> None:
        """Wait until each of these minions answers a ping.

        Raises:
            WaitError: after ``seconds``, naming the silent ones.
        """
        command = ["/opt/salt/bin/python", "-c", ANSWERING.read_text(), f"{seconds:g}"]
        result = self.master.run(
            [*command, ",".join(sorted(minions))], check=False, timeout=seconds + 30
        )
        if not result.ok:
            said = result.stderr.strip().splitlines()[-1:] or ["the master does not answer"]
            raise WaitError(
                f"waited {seconds:g} s for minions to answer {self.master.name}: {said[0]}. "
                "Look at `systemctl status salt-minion` there (make shell M=<machine>)."
            )

    def _logged(
        self, words: list[str], shown: str, timeout: float, input: str | None = None
    ) -> tuple[Result, Path]:
        log = self._log(shown)
        start = time.monotonic()
        result = self.master.run(words, check=False, timeout=timeout, input=input)
        took = time.monotonic() - start
        log.write_text(
            f"$ {shown}\n{result.stdout}\n--- stderr\n{result.stderr}\n"
            f"--- exit code {result.returncode} after {took:.1f} s\n"
        )
        return result, log

    def _parsed(self, result: Result, shown: str, log: Path, timeout: float) -> Any:
        call = f"{self.master.name}: {shown[:300]}"
        if result.returncode == -1:
            raise SaltRunError(call, [f"{self.master.name}: no end in {timeout:g} s"], str(log))
        try:
            return parse_json(result.stdout)
        except ValueError:
            said = " ".join((result.stdout + result.stderr).split())[-400:]
            raise SaltRunError(call, [f"{self.master.name}: {said}"], str(log)) from None

    def _call(self, words: list[str], timeout: float) -> Any:
        shown = shlex.join(words)
        result, log = self._logged(words, shown, timeout)
        answer = self._parsed(result, shown, log, timeout)
        problems = verdict(answer, result.returncode, self.master.name)
        if problems:
            call = f"{self.master.name}: {shown[:300]}"
            raise SaltRunError(call, problems, str(log), answer)
        return answer

    def _log(self, shown: str) -> Path:
        self.settings.logs.mkdir(parents=True, exist_ok=True)
        plain = [word for word in shown.split() if not word.startswith("-") and "=" not in word]
        name = re.sub(r"[^\w.-]+", "_", "-".join(plain))[:80]
        return self.settings.logs / f"{name}-{int(time.time() * 1000)}.log"


class _Listening:
    """Hands the master's events to a callback as long as the block lasts."""

    def __init__(self, master: Machine, on_event: OnEvent | None) -> None:
        self.master = master
        self.on_event = on_event
        self.process: subprocess.Popen[str] | None = None
        self.thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if self.on_event is None:
            return
        command = [*self.master.enter(), "/opt/salt/bin/python", "-c", LISTENER.read_text()]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        assert self.on_event is not None
        for line in self.process.stdout:
            event = json.loads(line)
            self.on_event(event["tag"], event["data"])

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            # nsenter has a child in the machine: only the whole group ends it.
            kill_group(self.process.pid)
            self.process.wait()
        if self.thread is not None:
            self.thread.join(5)
