"""One lab: its network, its machines, its Salt."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import hostcheck, saltaccess, tree
from .authority import Authority
from .errors import LabError
from .image import Images
from .machine import Machine
from .mirror import Mirror
from .network import Network
from .process import host
from .saltaccess import OnEvent, SaltAccess
from .settings import ADDRESSES, GATEWAY, INVITED, MASTER, PREFIX, Settings

NETWORK_CONF = """\
[Match]
Name=host0

[Network]
Address={address}/{prefix}
Gateway={gateway}
LinkLocalAddressing=no
IPv6AcceptRA=no
"""


@dataclass
class Lab:
    """All of one lab. ``Lab.load()`` gives the lab of the checkout or of the environment."""

    settings: Settings
    _machines: dict[str, Machine] = field(default_factory=dict)

    @classmethod
    def load(cls, root: Path | None = None, netns: str | None = None) -> Lab:
        """The lab whose state is in ``root`` (default ``SALTWORKS_LAB``, then ``.lab``)."""
        lab = cls(Settings.load(root, netns))
        for folder in sorted(lab.settings.machines.glob("*/address")):
            lab.settings.addresses[folder.parent.name] = folder.read_text().strip()
        return lab

    @property
    def network(self) -> Network:
        return Network(self.settings)

    @property
    def images(self) -> Images:
        return Images(self.settings)

    @property
    def mirror(self) -> Mirror:
        return Mirror(self.settings, self.images)

    @property
    def authority(self) -> Authority:
        return Authority(self.settings)

    @property
    def access(self) -> SaltAccess:
        return SaltAccess(self.settings, self.machine(MASTER))

    def machine(self, name: str, address: str | None = None) -> LabMachine:
        """A machine by name; a new name needs its address in 198.18.0.0/24.

        Raises:
            LabError: for a name that is neither known nor given an address.
        """
        known = self.settings.addresses
        address = address or INVITED.get(name)
        if address is not None:
            known[name] = address
        if name not in known:
            raise LabError(f"no machine is called {name}; there are: {', '.join(sorted(known))}")
        if name not in self._machines:
            self._machines[name] = LabMachine(
                name=name,
                address=known[name],
                settings=self.settings,
                network=self.network,
                lab=self,
            )
        found = self._machines[name]
        assert isinstance(found, LabMachine)
        return found

    def machines(self) -> list[LabMachine]:
        """Every known machine: those of the plan and those made since."""
        return [self.machine(name) for name in self.settings.addresses]

    def acceptable(self) -> list[str]:
        """Machines whose keys the master has accepted, whatever they show; others must join."""
        return [name for name in self.settings.addresses if name not in INVITED]

    @property
    def any_running(self) -> bool:
        """True if any machine runs."""
        return any(machine.running for machine in self.machines())

    def up(self, names: Sequence[str] = tuple(ADDRESSES)) -> None:
        """Create what is missing, boot these machines, wait for their minions.

        Layers, mirrors and network are made first if need be.
        """
        self.network_up()
        for name in names:
            if not self.machine(name).created:
                self.machine(name).create()
        self.boot(names)

    def network_up(self) -> None:
        """Network, names and authority."""
        self.settings.root.mkdir(parents=True, exist_ok=True)
        self.settings.note()
        self.authority.up()
        self.network.up()
        hostcheck.raise_inotify()

    def boot(self, names: Sequence[str], answering: bool = True) -> None:
        """Boot machines at once; with ``answering`` wait until their minions answer too."""
        for name in names:
            self.machine(name).launch()
        for name in names:
            self.machine(name).await_boot()
        if answering and MASTER in names:
            self.access.answering(list(names))

    def down(self) -> None:
        """Shut every machine down in order; their files and the network stay."""
        for machine in self.machines():
            if machine.created:
                machine.stop()

    def dns_point(self, name: str, ip: str) -> None:
        """Let a public name answer with ``ip``."""
        self.network.point(name, ip)

    def issue(self, names: list[str]) -> tuple[str, str]:
        """A server certificate of the lab's authority: chain and key, PEM."""
        return self.authority.issue(names)

    def push_tree(self) -> list[str]:
        """Copy the work tree to the master; restart the master if it had the old loaded.

        Returns:
            Paths that changed.
        """
        master = self.machine(MASTER)
        pushed = tree.push(master)
        if pushed.restart and master.running:
            master.run(["systemctl", "restart", "salt-master"], timeout=90)
            running = [machine.name for machine in self.machines() if machine.running]
            self.access.answering(running)
        return pushed.changed

    def salt_run(
        self,
        fun: str,
        *args: str,
        pillar: dict[str, Any] | None = None,
        timeout: float = 600,
        test: bool = False,
        on_event: OnEvent | None = None,
    ) -> dict[str, Any]:
        """``salt-run`` on the master; see ``SaltAccess.run``."""
        return self.access.run(
            fun, *args, pillar=pillar, timeout=timeout, test=test, on_event=on_event
        )

    def salt(
        self,
        target: str,
        fun: str,
        /,
        *args: Any,
        timeout: float = 60,
        check: bool = True,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """A function on minions; see ``SaltAccess.call``. ``*`` means every running machine."""
        if target == "*":
            target = ",".join(machine.name for machine in self.machines() if machine.running)
        return self.access.call(target, fun, *args, timeout=timeout, check=check, **kwargs)

    def status(self) -> list[dict[str, str]]:
        """Name, address, state and boot layers of every machine."""
        return [
            {
                "machine": machine.name,
                "address": machine.address,
                "state": "running"
                if machine.running
                else "stopped"
                if machine.created
                else "not made",
                "process": str(machine.init() or ""),
            }
            for machine in self.machines()
        ]


@dataclass(repr=False)
class LabMachine(Machine):
    """A machine that knows its lab: it can be created, and boots with the lab's mirrors."""

    lab: Lab | None = None

    def __repr__(self) -> str:
        return f"<machine {self.name} {self.address} of {self.settings.root}>"

    def create(self, layers: Sequence[Path] = ()) -> LabMachine:
        """Lay it out over ``layers`` (topmost first) and the base image; not booted.

        Does nothing if it is created already.
        """
        if self.created:
            return self
        assert self.lab is not None
        lab = self.lab
        if self.home.exists():
            # Half made: its maker was killed.
            self.destroy()
        base = lab.images.base()
        self.home.mkdir(parents=True)
        (self.home / "address").write_text(self.address)
        self.lay([*layers, base])
        self._write_identity(base)
        saltaccess.configure(self.settings, self.name, self.root, lab.acceptable())
        lab.authority.trust(self.root)
        (self.home / "created").touch()
        master = lab.machine(MASTER)
        if self.name in lab.acceptable() and master.running:
            SaltAccess(self.settings, master).accept(self.name)
        return self

    def launch(self) -> None:
        """Start it, without waiting, with the lab's mirrors mounted."""
        if self.running:
            return
        assert self.lab is not None
        if not self.created:
            raise LabError(f"{self.name} is not created yet: `make lab` makes it")
        self.binds = self.lab.mirror.binds()
        super().launch()

    def destroy(self) -> None:
        """Pull the plug and remove all of it; a machine that is not of the plan is forgotten."""
        super().destroy()
        if self.name not in ADDRESSES:
            self.settings.addresses.pop(self.name, None)
            if self.lab is not None and self.lab.machine(MASTER).running:
                self.lab.access.reject(self.name)

    def _write_identity(self, base: Path) -> None:
        etc = self.root / "etc"
        (etc / "hostname").write_text(f"{self.name}\n")
        pairs = [("127.0.0.1", "localhost"), ("::1", "localhost")]
        pairs += [(address, name) for name, address in self.settings.addresses.items()]
        (etc / "hosts").write_text("".join(f"{ip} {name}\n" for ip, name in pairs))
        (etc / "resolv.conf").unlink(missing_ok=True)
        (etc / "resolv.conf").write_text(f"nameserver {GATEWAY}\noptions timeout:2\n")
        (etc / "machine-id").unlink(missing_ok=True)
        (etc / "machine-id").write_text(f"{os.urandom(16).hex()}\n")
        network = etc / "systemd/network"
        network.mkdir(parents=True, exist_ok=True)
        (network / "10-lab.network").write_text(
            NETWORK_CONF.format(address=self.address, prefix=PREFIX, gateway=GATEWAY)
        )
        self._write_host_keys()
        wants = etc / "systemd/system/multi-user.target.wants"
        wants.mkdir(parents=True, exist_ok=True)
        units = ["salt-minion", "salt-master"] if self.name == MASTER else ["salt-minion"]
        for unit in units:
            link = wants / f"{unit}.service"
            link.unlink(missing_ok=True)
            link.symlink_to(f"/etc/systemd/system/{unit}.service")

    def _write_host_keys(self) -> None:
        path = self.root / "etc/ssh/ssh_host_ed25519_key"
        if not path.exists():
            command: list[str | Path] = [
                "chroot",
                self.root,
                "ssh-keygen",
                "-q",
                "-t",
                "ed25519",
                "-N",
                "",
            ]
            host([*command, "-f", "/etc/ssh/ssh_host_ed25519_key"])
