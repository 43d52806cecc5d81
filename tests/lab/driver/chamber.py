"""A throw-away root with the host's network, in which images and packages are built.

All of its mounts live in a mount namespace of its own, so nothing of it outlives its process,
and what the host knows of mirrors, proxies and certificates never reaches an image.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .errors import LabError
from .hostapt import apt_conf, archive
from .hostpip import PipSettings
from .process import execute

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ALONE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork"]
ALONE += ["--kill-child", "--propagation", "private"]


@dataclass
class Chamber:
    """One build root.

    Attributes:
        layers: lower directories, topmost first.
        cache: the lab's cache directory (downloads are kept in it).
        name: for the log and for the download directory.
        log: file that gets all output.
        keep: directory that receives what the build writes (an overlay layer); thrown away
            if None.
        root: build in this directory itself, without overlay (``layers`` is then unused).
        binds: inside path to host path, read and write.
        pip: index settings of the host to give to pip and uv.
    """

    layers: list[Path]
    cache: Path
    name: str
    log: Path
    keep: Path | None = None
    root: Path | None = None
    binds: dict[str, Path] = field(default_factory=dict)
    pip: PipSettings | None = None

    def run(self, script: str, timeout: float) -> None:
        """Run a shell script inside.

        Raises:
            LabError: with the last lines, when it fails or its time (seconds) is over.
        """
        (self.cache / "tmp").mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f"chamber-{self.name}-", dir=self.cache / "tmp"))
        try:
            plan = self._mounts(scratch) + self._enter(scratch, script)
            out, err, code = execute(
                [*ALONE, "/bin/sh", "-eu", "-c", plan], timeout=timeout, env={"PATH": PATH}
            )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        text = (out + err).decode(errors="replace")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a") as file:
            file.write(text)
        if code != 0:
            tail = "\n".join(text.strip().splitlines()[-15:])
            raise LabError(f"build of {self.name} failed ({code})\n{tail}\nfull log: {self.log}")

    def _mounts(self, scratch: Path) -> str:
        place = self.root or scratch / "root"
        lines = []
        if self.root is None:
            upper = self.keep or scratch / "upper"
            work = (
                scratch / "work"
                if self.keep is None
                else self.keep.with_name(self.keep.name + ".work")
            )
            for path in (place, upper, work):
                path.mkdir(parents=True, exist_ok=True)
            lower = ":".join(str(layer) for layer in self.layers)
            options = f"lowerdir={lower},upperdir={upper},workdir={work}"
            lines.append(f"mount -t overlay overlay -o {shlex.quote(options)} {place}")
        archives = self.cache / "apt" / self.name
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        (self.cache / "pip").mkdir(parents=True, exist_ok=True)
        (self.cache / "uv").mkdir(parents=True, exist_ok=True)
        lines += [
            f"mount -t proc proc {place}/proc",
            f"mount --rbind /dev {place}/dev",
            f"mount -t tmpfs tmpfs {place}/run",
            f"mount -t tmpfs -o mode=1777 tmpfs {place}/tmp",
        ]
        host = scratch / "host"
        (host / "lists").mkdir(parents=True)
        (host / "sources.list").write_text(archive().sources())
        (host / "apt.conf").write_text(apt_conf() + 'APT::Sandbox::User "root";\n')
        binds = {
            "/run/host/apt": host,
            "/run/host/archives": archives,
            "/run/host/pip-cache": self.cache / "pip",
            "/run/host/uv-cache": self.cache / "uv",
            "/run/host/resolv.conf": Path("/etc/resolv.conf"),
            "/run/host/hosts": Path("/etc/hosts"),
        }
        certificates = Path("/etc/ssl/certs/ca-certificates.crt")
        if certificates.exists():
            binds["/run/host/ca.crt"] = certificates
        if self.pip:
            binds |= {str(path): path for path in self.pip.paths() if path.is_dir()}
            if self.pip.cert:
                binds["/run/host/ca.crt"] = Path(self.pip.cert)
        for inside, outside in {**binds, **self.binds}.items():
            target = f"{place}{inside}"
            make = f"mkdir -p {target}" if outside.is_dir() else f"install -D /dev/null {target}"
            lines.append(f"{make}; mount --bind {outside} {target}")
        for name in ("resolv.conf", "hosts"):
            source, target = f"{place}/run/host/{name}", f"{place}/etc/{name}"
            lines.append(f"[ -e {target} ] || touch {target}; mount --bind {source} {target}")
        return "\n".join(lines) + "\n"

    def _enter(self, scratch: Path, script: str) -> str:
        place = self.root or scratch / "root"
        env = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}
        env |= {"DEBIAN_FRONTEND": "noninteractive", "APT_CONFIG": "/run/host/apt/apt.conf"}
        if self.pip:
            env |= self.pip.pip_env() | self.pip.uv_env()
            if self.pip.cert:
                names = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
                env |= dict.fromkeys(names, "/run/host/ca.crt")
        env |= {"PIP_CACHE_DIR": "/run/host/pip-cache", "UV_CACHE_DIR": "/run/host/uv-cache"}
        words = ["exec", "chroot", str(place), "/usr/bin/env", "-i"]
        words += [f"{name}={value}" for name, value in env.items()]
        return shlex.join([*words, "/bin/sh", "-eu", "-c", APT + script])


APT = """
apt_get() {
    apt-get -q -o Dir::Etc::SourceList=/run/host/apt/sources.list -o Dir::Etc::SourceParts=- \\
        -o Dir::State::Lists=/run/host/apt/lists -o Dir::Cache::Archives=/run/host/archives \\
        -o Acquire::Retries=3 -o Acquire::Languages=none "$@"
}
"""
"""Shell function ``apt_get``: apt-get with the host's archive, nothing of it left in the root."""
