"""The base image: Debian with Salt in a venv of its own, named by the hash of what made it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .cache import files_digest, made, path_of
from .chamber import ALONE, Chamber
from .hostapt import apt_conf, archive
from .hostpip import pip_settings
from .packages import BASE, BUILD
from .process import host
from .settings import PROJECT, SUITE, Settings

DATA = Path(__file__).parent / "data"
LOCK = PROJECT / "requirements" / "salt.txt"
RECIPE = 1
"""Raised when a change of how Debian is laid out must make new images."""

BASE_RECIPE = "3"
"""The same for what is laid over Debian."""

COMMANDS = ("salt", "salt-call", "salt-cp", "salt-key", "salt-master", "salt-minion", "salt-run")
REST = "/usr/bin/rm -rf /var/cache/apt/*.bin /var/lib/apt/lists/* /var/log/*.log /var/log/apt"


@dataclass(frozen=True)
class Images:
    """Makes, or finds in the cache, the layers that machines and builds stand on."""

    settings: Settings

    @property
    def _os_inputs(self) -> list[object]:
        return [RECIPE, SUITE, BASE]

    @property
    def _builder_inputs(self) -> list[object]:
        return [self._os_inputs, BUILD]

    @property
    def _base_inputs(self) -> list[object]:
        units = sorted(path for path in DATA.iterdir() if path.suffix == ".service")
        return [self._os_inputs, files_digest(LOCK, *units), BASE_RECIPE]

    @property
    def log(self) -> Path:
        return self.settings.logs / "build.log"

    def base_path(self) -> Path:
        """Where the base image stands or will stand."""
        return path_of(self.settings.cache, "base", self._base_inputs)

    @property
    def os_name(self) -> str:
        """Name of plain Debian's directory, there or not."""
        return path_of(self.settings.cache, "os", self._os_inputs).name

    def os(self) -> Path:
        """Plain Debian with the packages of ``BASE``, security updates included."""
        return made(self.settings.cache, "os", self._os_inputs, self._make_os)

    def builder(self) -> Path:
        """Overlay layer over ``os()`` with compilers and headers."""
        path = made(self.settings.cache, "builder", self._builder_inputs, self._make_builder)
        return path / "layer"

    def base(self) -> Path:
        """The image that machines boot."""
        return made(self.settings.cache, "base", self._base_inputs, self._make_base)

    def chamber(self, name: str, binds: dict[str, Path]) -> Chamber:
        """A build root with compilers, over ``os()``; ``binds`` as in ``Chamber``."""
        return Chamber(
            layers=[self.builder(), self.os()],
            cache=self.settings.cache,
            name=name,
            log=self.log,
            binds=binds,
            pip=pip_settings(),
        )

    def _make_os(self, work: Path) -> None:
        source = archive()
        archives = self.settings.cache / "apt" / "debootstrap"
        archives.mkdir(parents=True, exist_ok=True)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(BASE)}"]
        command.append(f"--cache-dir={archives}")
        if source.keyring:
            command.append(f"--keyring={source.keyring}")
        conf = self.settings.cache / "tmp" / "debootstrap-apt.conf"
        conf.write_text(apt_conf())
        host([*ALONE, *command, SUITE, work, source.main], timeout=900, log=self.log)
        (work / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/srv/mirror/debs ./\n")
        (work / "etc/apt/apt.conf.d/90lab").write_text(
            'APT::Install-Recommends "false";\nAcquire::Languages "none";\n'
            'APT::Periodic::Enable "0";\nAPT::Sandbox::User "root";\n'
        )
        chamber = Chamber(layers=[], cache=self.settings.cache, name="os", log=self.log, root=work)
        chamber.run(f"apt_get update; apt_get -y dist-upgrade; apt-get clean; {REST}", 900)

    def _make_builder(self, work: Path) -> None:
        layer = work / "layer"
        layer.mkdir()
        chamber = Chamber(
            layers=[self.os()], cache=self.settings.cache, name="builder", log=self.log, keep=layer
        )
        words = " ".join(BUILD)
        chamber.run(
            f"apt_get update; apt_get -y install --no-install-recommends {words}; {REST}", 900
        )
        shutil.rmtree(work / "layer.work", ignore_errors=True)

    def _make_base(self, work: Path) -> None:
        host(["cp", "-a", f"{self.os()}/.", work], timeout=300)
        chamber = self.chamber("salt", binds={"/run/in": LOCK.parent, "/run/out": work / "opt"})
        chamber.run(
            "/usr/bin/python3 -m venv /opt/salt\n"
            "/opt/salt/bin/pip -q install --require-hashes -r /run/in/salt.txt\n"
            "/opt/salt/bin/python -m compileall -q -j 2 /opt/salt/lib >/dev/null || true\n"
            "cp -a /opt/salt /run/out/salt\n",
            900,
        )
        for name in COMMANDS:
            (work / "usr/local/bin" / name).symlink_to(f"/opt/salt/bin/{name}")
        for unit in DATA.glob("*.service"):
            shutil.copy(unit, work / "etc/systemd/system" / unit.name)
        self._tidy(work)

    def _tidy(self, work: Path) -> None:
        (work / "etc/machine-id").write_text("")
        (work / "etc/hostname").unlink(missing_ok=True)
        (work / "etc/resolv.conf").unlink(missing_ok=True)
        for path in (work / "etc/ssh").glob("ssh_host_*"):
            path.unlink()
        for folder in ("srv/mirror/debs", "srv/mirror/wheels", "srv/mirror/wheels-legacy"):
            (work / folder).mkdir(parents=True)
        for folder in ("etc/salt/minion.d", "etc/salt/master.d", "etc/salt/pki", "srv/saltworks"):
            (work / folder).mkdir(parents=True, exist_ok=True)
        script = (
            "systemctl enable systemd-networkd ssh\n"
            "systemctl disable apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer || true\n"
            "systemctl mask apt-daily.service apt-daily-upgrade.service systemd-udevd.service "
            "systemd-resolved.service e2scrub_reap.service\n"
            "passwd -l root >/dev/null\n"
        )
        host(["chroot", work, "/bin/sh", "-c", script], timeout=60, log=self.log)
