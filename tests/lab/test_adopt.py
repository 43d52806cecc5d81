"""`salt-run adopt.homeserver` on the real old server: the map, the secrets, the slices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from tests.lab import legacy, m0, scenario
from tests.lab.driver import Lab, wait_for

pytestmark = pytest.mark.lab

ADOPT = "salt-run adopt.homeserver legacy accepted='[enable_group_creation]' overwrite={}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """The main lab's master and old server; made here if need be, and then removed again."""
    found = Lab.load()
    names = ("salt", m0.MACHINE)
    made_here = [name for name in names if not found.machine(name).created]
    scenario.old_server(found, lambda text: None)
    found.machine("salt").create()
    found.push_tree()
    found.boot(list(names))
    legacy.await_synapse(found.machine(m0.MACHINE))
    yield found
    for name in made_here:
        found.machine(name).destroy()


def test_the_hand_made_server_becomes_a_map_and_secrets(lab: Lab) -> None:
    master = lab.machine("salt")
    before = lab.machine(m0.MACHINE).run("sha256sum /home/matrix/synapse/*.yaml").stdout
    wait_for(lambda: master.run("salt legacy test.ping", check=False).ok, 60, "legacy to answer")
    report = master.run(ADOPT.format("True"), timeout=120).stdout
    assert "Can be adopted" in report
    assert "its version was not asked" not in report

    cluster = yaml.safe_load(master.read("/srv/saltworks/pillar/cluster.sls"))["cluster"]
    assert cluster["server_name"] == "lale.test"
    assert cluster["legacy"]["unit"] == "matrix-synapse.service"
    assert cluster["synapse"]["modules"][0]["module"].endswith("LdapAuthProviderModule")
    key = lab.machine(m0.MACHINE).read("/home/matrix/synapse/lale.test.signing.key").split()[-1]
    written = master.read("/srv/saltworks/pillar/secrets.sls")
    assert key not in written
    assert written.count("BEGIN PGP MESSAGE") >= 8
    assert master.run("stat -c %a /srv/saltworks/pillar/secrets.sls").stdout == "600\n"
    # The answer that held the secrets is in no job cache and no log of the master.
    leaked = master.run(["grep", "-rlF", key, "/var/cache/salt/master", "/var/log"], check=False)
    assert leaked.stdout == ""
    assert lab.machine(m0.MACHINE).run("sha256sum /home/matrix/synapse/*.yaml").stdout == before

    again = master.run(ADOPT.format("False"), check=False, timeout=120)
    assert again.returncode == 1
    assert "a cluster map is there already" in again.stdout
