"""One machine of the lab: a booted systemd-nspawn container over an overlay."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import cgroups
from .errors import LabError, MachineError, WaitError
from .network import Network, command_lines
from .process import Result, execute, host, text_of, wait_for
from .settings import Settings

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CAPABILITIES = "CAP_NET_ADMIN,CAP_NET_RAW,CAP_SYS_PTRACE"
BOOT_SECONDS = 120

LAUNCH = 'for group in $GROUPS_; do echo $$ >"$group/cgroup.procs" || true; done; exec "$@"'

AS_USER = (
    'user=$1; shift; home=$(getent passwd "$user" | cut -d: -f6); cd "$home" 2>/dev/null; '
    'exec runuser -u "$user" -- /usr/bin/env HOME="$home" USER="$user" "$@"'
)


@dataclass
class Machine:
    """A machine, created or not, running or not.

    Attributes:
        name: name, hostname and minion id.
        address: its IPv4 address.
        binds: inside path to host path, read-only.
    """

    name: str
    address: str
    settings: Settings
    network: Network
    binds: dict[str, Path] = field(default_factory=dict)

    @property
    def home(self) -> Path:
        """Its state on the host."""
        return self.settings.machines / self.name

    @property
    def root(self) -> Path:
        """Its root file system on the host (mounted while created)."""
        return self.home / "root"

    @property
    def upper(self) -> Path:
        """What it wrote over its layers."""
        return self.home / "upper"

    @property
    def console(self) -> Path:
        return self.settings.logs / f"{self.name}.console"

    @property
    def created(self) -> bool:
        return (self.home / "created").exists()

    @property
    def group(self) -> str:
        return f"{self.settings.cgroup}/{self.name}"

    @property
    def layers(self) -> list[Path]:
        """Its lower layers, topmost first."""
        return [Path(line) for line in (self.home / "layers").read_text().splitlines()]

    def supervisor(self) -> int:
        """Process id of its systemd-nspawn, or 0."""
        wanted = f"--directory={self.root}".encode()
        for pid, words in command_lines():
            if wanted in words and words[0].endswith(b"systemd-nspawn"):
                return pid
        return 0

    def init(self) -> int:
        """Process id, on the host, of its process 1; 0 if it does not run."""
        parent = self.supervisor()
        candidates = _children(parent) if parent else cgroups.processes(self.group)
        return next((pid for pid in candidates if _is_init(pid)), 0)

    @property
    def running(self) -> bool:
        return self.init() != 0

    def lay(self, layers: Sequence[Path]) -> None:
        """Lay out an overlay over ``layers`` (topmost first) and mount it; not yet ``created``."""
        self.upper.mkdir(parents=True, exist_ok=True)
        (self.home / "layers").write_text("".join(f"{layer}\n" for layer in layers))
        self.mount()

    def mount(self) -> None:
        """Mount the overlay, if it is not."""
        if os.path.ismount(self.root):
            return
        work = self.home / "work"
        for path in (self.root, work):
            path.mkdir(parents=True, exist_ok=True)
        for layer in self.layers:
            if not layer.is_dir():
                raise LabError(
                    f"{self.name}: its layer {layer} is gone from the cache. "
                    "Run `make clean-lab`, then build the lab again."
                )
        lower = ":".join(str(layer) for layer in self.layers)
        options = f"lowerdir={lower},upperdir={self.upper},workdir={work}"
        host(["mount", "-t", "overlay", "saltworks-lab", "-o", options, self.root])

    def launch(self) -> None:
        """Start it, without waiting."""
        if self.running:
            return
        self.settle()
        self.mount()
        self.console.parent.mkdir(parents=True, exist_ok=True)
        groups = " ".join(str(path) for path in cgroups.make(self.group))
        words = [*self.network.inside()[:-1], "systemd-nspawn", "--quiet"]
        words += [f"--directory={self.root}", f"--machine={self.name}", "--register=no"]
        words += ["--keep-unit", "--network-bridge=sw0", "--resolv-conf=off", "--boot"]
        words += [f"--capability={CAPABILITIES}", "--console=read-only", "--timezone=off"]
        words += [f"--bind-ro={outside}:{inside}" for inside, outside in self.binds.items()]
        with self.console.open("ab") as log:
            command = ["/bin/sh", "-c", LAUNCH, "launch", "setsid", "--fork", *words]
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=True,
                timeout=20,
                env={"PATH": PATH, "GROUPS_": groups, "SYSTEMD_LOG_LEVEL": "warning"},
            )

    def boot(self, seconds: float = BOOT_SECONDS) -> Machine:
        """Start it and wait until its systemd is up.

        Raises:
            MachineError: with the end of its console, when it does not come up in time.
        """
        self.launch()
        return self.await_boot(seconds)

    def await_boot(self, seconds: float = BOOT_SECONDS) -> Machine:
        """Wait until a launched machine's systemd is up (``running`` or ``degraded``)."""
        try:
            wait_for(lambda: self._up(), seconds, f"{self.name} to boot", interval=0.15)
        except WaitError as error:
            tail = self.console.read_text(errors="replace") if self.console.exists() else ""
            raise MachineError(
                self.name, "boot", -1, f"{tail}\n{error}\nconsole: {self.console}"
            ) from error
        return self

    def _up(self) -> bool:
        if not self.running:
            return False
        state = self.run(["systemctl", "is-system-running"], check=False, timeout=10)
        return state.stdout.strip() in ("running", "degraded")

    def enter(self) -> list[str]:
        """Prefix that runs a command in it, with a clean environment.

        Raises:
            MachineError: if it does not run.
        """
        pid = self.init()
        if not pid:
            raise MachineError(self.name, "enter", -1, "the machine does not run: boot it first")
        words = ["nsenter", f"--target={pid}", "--mount", "--uts", "--ipc", "--net", "--pid"]
        words += ["--cgroup", "--wdns=/", "--", "/usr/bin/env", "-i", f"PATH={PATH}"]
        return [*words, "HOME=/root", "LANG=C.UTF-8", "TERM=dumb", "USER=root"]

    def run(
        self,
        command: str | Sequence[str],
        check: bool = True,
        timeout: float = 60,
        input: str | bytes | None = None,
        user: str | None = None,
    ) -> Result:
        """Run a command: a string through ``sh -c``, a list as it is.

        Args:
            command: what to run.
            check: raise if it fails.
            timeout: seconds; then everything it started in its group is killed.
            input: for its standard input.
            user: run as this user of the machine.

        Raises:
            MachineError: naming machine, command, exit code and the last lines.
        """
        words = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        if user:
            words = ["/bin/sh", "-c", AS_USER, "as", user, *words]
        data = input.encode() if isinstance(input, str) else input
        out, err, code = execute([*self.enter(), *words], timeout=timeout, data=data)
        result = Result(out.decode(errors="replace"), err.decode(errors="replace"), code)
        if check and code != 0:
            shown = command if isinstance(command, str) else text_of(command)
            raise MachineError(self.name, shown, code, f"{result.stdout}\n{result.stderr}")
        return result

    def write(
        self, path: str, data: str | bytes, mode: int = 0o644, owner: str | None = None
    ) -> None:
        """Write a file atomically, with its folders; ``owner`` as chown takes it."""
        quoted, new = shlex.quote(path), shlex.quote(f"{path}.lab-new")
        chown = f"chown {shlex.quote(owner)} {new} && " if owner else ""
        self.run(
            f"mkdir -p $(dirname {quoted}) && umask 077 && cat >{new} && {chown}"
            f"chmod {mode:o} {new} && mv -f {new} {quoted}",
            input=data,
        )

    def read_bytes(self, path: str) -> bytes:
        """Content of a file."""
        out, err, code = execute([*self.enter(), "cat", "--", path], timeout=60)
        if code != 0:
            raise MachineError(self.name, f"cat {path}", code, err.decode(errors="replace"))
        return out

    def read(self, path: str) -> str:
        """Text of a file."""
        return self.read_bytes(path).decode()

    def push(self, src: Path, dst: str) -> None:
        """Copy a file to ``dst``, or what is in a folder into the folder ``dst``."""
        if src.is_file():
            self.write(dst, src.read_bytes(), mode=src.stat().st_mode & 0o777)
            return
        self.run(["mkdir", "-p", dst])
        self.sync(src, dst, ["--chown=root:root"])

    def sync(self, src: Path, dst: str, options: Sequence[str] = ()) -> list[str]:
        """rsync -a of what is in ``src`` into the folder ``dst``; returns its output lines.

        Works on a stopped machine too, if ``dst`` is not below a link.
        """
        if self.running:
            shell = shlex.join([*self.enter(), "/bin/sh", "-c", 'shift; exec "$@"', "rsh"])
            place = [f"--rsh={shell}", f"{src}/", f"{self.name}:{dst}/"]
        else:
            place = [f"{src}/", f"{self.root}{dst}/"]
        command = ["rsync", "-a", *options, *place]
        return host(command, timeout=300).stdout.splitlines()

    def wait_for(self, command: str, seconds: float, what: str) -> Result:
        """Run ``command`` until it succeeds; a machine that reboots meanwhile is no error.

        Raises:
            WaitError: after ``seconds``, with ``what`` and the last answer.
        """
        last = "nothing was run"

        def probe() -> Result | None:
            nonlocal last
            try:
                result = self.run(command, check=False, timeout=max(5, seconds))
            except MachineError as error:
                last = str(error)
                return None
            last = (result.stdout + result.stderr).strip()[-500:]
            return result if result.ok else None

        try:
            found = wait_for(probe, seconds, f"{what} on {self.name}", interval=0.25)
        except WaitError as error:
            raise WaitError(f"{error}; `{command[:200]}` last said: {last}") from error
        assert isinstance(found, Result)
        return found

    def kill(self) -> None:
        """Pull its plug: SIGKILL to its process 1. Its files stay."""
        pid = self.init()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._await_end(20)

    def stop(self, seconds: float = 40) -> None:
        """Shut it down in order; pull the plug if that takes longer than ``seconds``."""
        pid = self.init()
        if pid:
            # systemd(1): SIGRTMIN+4 starts poweroff.target.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGRTMIN + 4)
            with contextlib.suppress(WaitError):
                self._await_end(seconds)
        self.settle()

    def _await_end(self, seconds: float) -> None:
        wait_for(lambda: not self.supervisor() and not self.init(), seconds, f"{self.name} to end")

    def settle(self) -> None:
        """Remove what a dead nspawn may have left: processes, cable, control groups."""
        if self.running and self.supervisor():
            self.kill()
        cgroups.kill(self.group)
        cgroups.remove(self.group)
        link = ["ip", "-n", self.settings.netns, "link", "del", f"vb-{self.name}"]
        if self.network.exists:
            host(link, check=False)

    def cut(self) -> None:
        """Cut its network cable."""
        self.network.link(self.name, up=False)

    def mend(self) -> None:
        """Mend its network cable."""
        self.network.link(self.name, up=True)

    def unmount(self) -> None:
        """Unmount its overlay, if mounted."""
        while os.path.ismount(self.root):
            if not host(["umount", self.root], check=False).ok:
                host(["umount", "--lazy", self.root])

    def destroy(self) -> None:
        """Pull the plug and remove all of it."""
        if self.running or self.supervisor():
            self.kill()
        self.settle()
        self.unmount()
        shutil.rmtree(self.home, ignore_errors=True)
        self.console.unlink(missing_ok=True)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(word) for word in file.read_text().split()]
    return found


def _is_init(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    lines = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    numbers = lines.get("NSpid", "").split()
    return len(numbers) > 1 and numbers[-1] == "1" and "Z" not in lines.get("State", "Z")
