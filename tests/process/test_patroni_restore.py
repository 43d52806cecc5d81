"""A machine of Patroni's cluster that lost everything while no other lives: back from backups."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from salt.exceptions import CommandExecutionError
from saltworks import backups, pki

from tests.process import backup_site, postgres
from tests.process.backup_site import Site
from tests.process.front_door import free_ports, wait_for
from tests.process.patroni_house import Authority, Etcd, Machine, Programs, folder, give
from tests.render import trees
from tests.render.conftest import renderer

__all__ = ["renderer"]

pytestmark = pytest.mark.alone


@dataclass
class Alone:
    """A cluster of one machine, which is backed up."""

    machine: Machine
    site: Site
    etcd: Etcd

    def known(self) -> int:
        """How far the leader was, by what is written in etcd, in bytes of WAL."""
        return int(json.loads(self.key("status"))["optime"])

    def key(self, name: str) -> str:
        """A key of the cluster's in etcd."""
        below = self.machine.salt["etcd_keys.below"](self.etcd.at(), "/")
        found = [row["text"] for key, row in below.items() if key.endswith(f"/{name}")]
        return str(found[0]) if found else ""

    def folders_anew(self) -> None:
        """Another machine of that name."""
        for path in self.machine.folders.values():
            shutil.rmtree(path)
            path.mkdir(mode=0o755)
            give(path, self.machine.user)
        self.machine.data.chmod(0o700)

    def anew(self) -> None:
        """Another machine of that name and role: Debian's cluster, let go of; Patroni waits."""
        machine = self.machine
        self.folders_anew()
        machine.initdb()
        machine.configure()
        done = machine.salt["patroni_machine.settle"](machine.at, True, machine.config)
        assert done["what"] == "clear"
        machine.start()


@pytest.fixture
def alone(renderer: trees.Renderer) -> Iterator[Alone]:
    with folder() as top:
        programs, authority = Programs(top), Authority()
        etcd = Etcd(renderer, programs, authority)
        machine = Machine(renderer, programs, authority, etcd.hosts, 2, adopts=True)
        try:
            site = site_of(renderer, machine, top)
            machine.initdb()
            postgres.psql(machine.at, "CREATE DATABASE synapse;")
            site.psql("CREATE TABLE notes (word text);")
            machine.take()
            yield Alone(machine, site, etcd)
        finally:
            machine.end()
            programs.end()


def site_of(renderer: trees.Renderer, machine: Machine, top: Path) -> Site:
    """The store, and what the formula pgbackrest makes of this machine."""
    (top / "store" / "database").mkdir(parents=True)
    (port,) = free_ports(1)
    authority = Authority()
    crt, key = pki.issue(authority.crt, authority._key, ["localhost"], authority.now)
    for name, text in {"tls.crt": crt, "tls.key": key, "authority.pem": authority.crt}.items():
        (top / name).write_text(text)
    conf = top / "pgbackrest.conf"
    machine.pillar["postgres"]["archive"] = {
        name: value.replace("pgbackrest", f"pgbackrest --config={conf}", 1)
        for name, value in backups.archive_settings("localhost", port).items()
    }
    site = Site(top, machine.at, machine.salt, port)
    go_back = machine.salt["patroni_machine.go_back"]
    machine.salt |= {
        "patroni_machine.go_back": lambda: go_back(machine.config),
        "service.start": lambda unit: None if machine.process else machine.start(),
        "service.stop": lambda unit: machine.stop() if machine.process else None,
        "service.enabled": lambda unit: site.enabled,
        "service.enable": lambda unit: setattr(site, "enabled", True),
        "service.disable": lambda unit: setattr(site, "enabled", False),
    }
    backup_site.configured(renderer, site, conf, authority.crt, {"unit": "patroni"})
    return site


def test_all_that_is_in_the_store_is_on_a_new_machine_which_leads(alone: Alone) -> None:
    site, machine = alone.site, alone.machine
    with site.store():
        site.call("pgbackrest.create")
        site.call("pgbackrest.backup", "full")
        site.note("stored")
        site.psql("SELECT pg_switch_wal();")
        wait_for("the archive", lambda: site.report()["server"]["waiting"] == 0, 60)
    # More than Patroni lets one lack that is to lead, and than what is left of a segment.
    site.psql(
        "CREATE TABLE much AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, 60000) g;"
    )
    site.note("lost")
    end = int(site.psql("SELECT pg_current_wal_lsn() - '0/0';"))
    wait_for("etcd to know of it", lambda: alone.known() >= end, 30)
    machine.kill()
    wait_for("the leader's key to run out", lambda: not alone.key("leader"), 60)
    alone.anew()
    with site.store():
        found = site.source("latest")
        with pytest.raises(CommandExecutionError, match="no database here, as before"):
            site.call("pgpitr.restore", "latest", "20000101-000000F", 1, found.bytes)
        assert site.enabled
        done = site.restore("latest")
        assert machine.call("is_leader")
        assert site.notes() == ["stored"]
        assert done["timeline"]["from"] == 0
        assert site.enabled
        assert site.call("pgpitr.kept")["stands"]
        site.note("goes on")
        assert site.call("pgbackrest.backup", "diff")["taken"]


@pytest.mark.soak
def test_with_etcd_lost_too_its_new_cluster_is_forgotten_first(alone: Alone) -> None:
    site, machine = alone.site, alone.machine
    with site.store():
        site.call("pgbackrest.create")
        site.call("pgbackrest.backup", "full")
        site.note("stored")
        site.psql("SELECT pg_switch_wal();")
        wait_for("the archive", lambda: site.report()["server"]["waiting"] == 0, 60)
        machine.kill()
        alone.etcd.kill()
        for name in alone.etcd.peers:
            shutil.rmtree(alone.etcd.programs.top / name / "data")
        alone.etcd.start()
        # The role makes the cluster of the empty server.
        alone.folders_anew()
        machine.initdb()
        machine.take()
        machine.stop()
        wait_for("its key to run out", lambda: not alone.key(f"members/{machine.name}"), 60)
        assert machine.salt["patroni_machine.forget"](machine.config)
        site.restore("latest")
        assert site.notes() == ["stored"]
        machine.streaming()
        assert machine.call("is_leader")
        # As its next state run does.
        machine.salt["patroni_machine.attune"](
            machine.at, "async", 1 << 20, [], True, machine.config
        )
        site.note("goes on")
        assert site.call("pgbackrest.backup", "diff")["taken"]
