"""`salt-run adopt.homeserver` on the real old server: the map, the secrets, the slices."""

from __future__ import annotations

import hashlib

import pytest
import yaml
from saltworks import releases

from tests.lab import legacy, m0
from tests.lab.driver import PROJECT
from tests.lab.stage import Stage

pytestmark = pytest.mark.lab

SUMS = f"sha256sum {legacy.HOME}/*.yaml"
ADOPT = "salt-run adopt.homeserver legacy accepted='[enable_group_creation]' overwrite={}"


def test_the_hand_made_server_becomes_a_map_and_secrets(found: Stage) -> None:
    master, old_server = found.master, found.legacy
    before = old_server.run(SUMS).stdout
    found.lab.access.answering(["salt", m0.MACHINE])
    report = master.run(ADOPT.format("True"), timeout=120).stdout
    assert "Can be adopted" in report
    assert "its version was not asked" not in report

    cluster = yaml.safe_load(master.read("/srv/saltworks/pillar/cluster.sls"))["cluster"]
    assert cluster["server_name"] == "lale.test"
    assert cluster["legacy"]["unit"] == "matrix-synapse.service"
    assert cluster["machines"] == {
        "salt": {"role": "master", "address": master.address},
        "legacy": {"role": "legacy", "address": old_server.address},
    }
    config = f"{legacy.HOME}/homeserver.yaml"
    digest = hashlib.sha256(old_server.read_bytes(config)).hexdigest()
    assert cluster["legacy"]["config_sha256"] == {config: digest}
    assert cluster["releases"]["synapse"] == releases.target(PROJECT)
    assert cluster["synapse"]["modules"][0]["module"].endswith("LdapAuthProviderModule")
    key = old_server.read("/home/matrix/synapse/lale.test.signing.key").split()[-1]
    written = master.read("/srv/saltworks/pillar/secrets.sls")
    assert key not in written
    assert written.count("BEGIN PGP MESSAGE") >= 8
    assert master.run("stat -c %a /srv/saltworks/pillar/secrets.sls").stdout == "600\n"
    # The answer that held the secrets is in no job cache and no log of the master.
    leaked = master.run(["grep", "-rlF", key, "/var/cache/salt/master", "/var/log"], check=False)
    assert leaked.stdout == ""
    assert old_server.run(SUMS).stdout == before

    again = master.run(ADOPT.format("False"), check=False, timeout=120)
    assert again.returncode == 1
    assert "a cluster map is there already" in again.stdout


def test_without_a_minion_on_the_master_or_a_lock_nothing_is_written(found: Stage) -> None:
    master = found.master
    places = "/srv/saltworks/pillar/cluster.sls /srv/saltworks/pillar/secrets.sls"
    before = master.run(f"sha256sum {places}", check=False).stdout
    refused = master.run(ADOPT.format("True release=1.2.3"), check=False, timeout=120)
    assert refused.returncode == 1
    assert "there is no lock of Synapse 1.2.3" in refused.stdout
    found.lab.access.reject("salt")
    try:
        refused = master.run(ADOPT.format("True"), check=False, timeout=120)
    finally:
        found.lab.access.accept("salt")
    assert refused.returncode == 1
    assert "start a salt-minion on the master (id: salt)" in refused.stdout
    assert master.run(f"sha256sum {places}", check=False).stdout == before
