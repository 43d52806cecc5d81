"""The driver on real machines, in a lab of its own beside the main one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.driver import PROJECT, Lab, LabMachine, MachineError, SaltRunError, wait_for
from tests.lab.driver.cleanup import clean, leftovers
from tests.lab.driver.saltanswer import failures
from tests.lab.driver.testinfra_backend import machine_host

pytestmark = pytest.mark.lab


@pytest.fixture(scope="module")
def own() -> Iterator[Lab]:
    main = Lab.load()
    lab = Lab.load(main.settings.root.with_name(".lab-driver-test"), netns="swdriver")
    clean(lab.settings)
    lab.network_up()
    yield lab
    clean(lab.settings)
    assert leftovers(lab.settings) == []


@pytest.fixture
def legacy(own: Lab) -> LabMachine:
    own.network_up()
    machine = own.machine("legacy")
    machine.create()
    machine.boot()
    return machine


def test_command_has_a_clean_environment_and_tells_how_it_failed(legacy: LabMachine) -> None:
    assert legacy.run(["hostname"]).stdout == "legacy\n"
    assert legacy.run("cat", input="ä\n").stdout == "ä\n"
    assert "proxy" not in legacy.run("env").stdout.lower()
    with pytest.raises(MachineError, match=r"(?s)legacy: `echo why; exit 3`: exit code 3.*why"):
        legacy.run("echo why; exit 3")
    with pytest.raises(MachineError, match="ran out of time"):
        legacy.run("sleep 60", timeout=0.5)
    assert legacy.run("pgrep -x sleep", check=False).returncode == 1


def test_files_go_in_and_out_with_mode_and_owner(legacy: LabMachine) -> None:
    legacy.write("/srv/deep/er/file", "text", mode=0o640, owner="root:adm")
    assert legacy.read("/srv/deep/er/file") == "text"
    assert legacy.run("stat -c '%a %U %G' /srv/deep/er/file").stdout == "640 root adm\n"
    legacy.push(PROJECT / "tests/unit", "/srv/unit")
    assert legacy.run("test -f /srv/unit/test_lab_driver.py").ok
    assert legacy.run("id -un; echo $HOME", user="www-data").stdout == "www-data\n/var/www\n"


def test_machine_has_only_the_mirror_and_no_way_out(legacy: LabMachine) -> None:
    route = legacy.run("ip route get 1.1.1.1 && ping -c1 -W1 1.1.1.1", check=False)
    assert route.returncode != 0
    assert (
        legacy.run(
            "cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true"
        ).stdout.strip()
        == "deb [trusted=yes] file:/srv/mirror/debs ./"
    )
    assert not legacy.run("touch /srv/mirror/debs/x", check=False).ok
    found = legacy.run("ls /etc/pip.conf /root/.config/pip /root/.pip 2>/dev/null", check=False)
    assert found.stdout == ""
    assert "Inst nginx" in legacy.run("apt-get -q update >&2; apt-get -s install nginx").stdout


def test_names_move_within_the_lab(own: Lab, legacy: LabMachine) -> None:
    for address in ("198.18.0.10", "198.18.0.11"):
        own.dns_point("moved.lale.test", address)
        legacy.wait_for(f"getent hosts moved.lale.test | grep -q '^{address} '", 30, address)


def test_certificates_of_the_lab_are_trusted(own: Lab, legacy: LabMachine) -> None:
    chain, _ = own.issue(["chat.lale.test"])
    legacy.write("/srv/chain.pem", chain)
    assert legacy.run("openssl verify -untrusted /srv/chain.pem /srv/chain.pem").ok


def test_killed_machine_keeps_its_files_and_boots_again(legacy: LabMachine) -> None:
    legacy.write("/srv/kept", "here")
    legacy.run("sync")
    legacy.kill()
    assert not legacy.running
    with pytest.raises(MachineError, match="does not run"):
        legacy.run("true")
    legacy.boot()
    assert legacy.read("/srv/kept") == "here"


def test_machine_without_its_supervisor_can_be_ended(legacy: LabMachine) -> None:
    os.kill(legacy.supervisor(), signal.SIGKILL)
    wait_for(lambda: not legacy.supervisor(), 30, "nspawn to be gone")
    orphan = legacy.init()
    assert orphan
    legacy.kill()
    assert legacy.init() == 0
    assert legacy.boot().running


def test_cut_cable_is_cut_and_mended(legacy: LabMachine) -> None:
    ping = ["ping", "-c1", "-W1", "198.18.0.1"]
    legacy.cut()
    assert not legacy.run(ping, check=False).ok
    legacy.mend()
    legacy.wait_for("ping -c1 -W1 198.18.0.1", 30, "the cable")


def test_testinfra_sees_the_machine(own: Lab, legacy: LabMachine) -> None:
    done = machine_host(legacy).run("echo %s; exit 4", "a b")
    assert (done.rc, done.stdout) == (4, "a b\n")


def test_salt_answers_and_fails_with_names(own: Lab, legacy: LabMachine) -> None:
    own.up(["salt", "legacy"])
    assert own.salt("*", "test.ping") == {"salt": True, "legacy": True}
    with pytest.raises(SaltRunError, match=r"'no\.such' is not available"):
        own.salt_run("no.such")
    master = own.machine("salt")
    master.write("/srv/salt/bad.sls", "a:\n  file.managed:\n    - name: /no/such/folder/a\n")
    master.write(
        "/srv/salt/steps.sls",
        "one:\n  salt.state:\n    - tgt: legacy\n    - sls: bad\n    - queue: True\n",
    )
    tags: list[str] = []
    with pytest.raises(SaltRunError, match="legacy: a: Parent directory") as caught:
        own.salt_run("state.orchestrate", "steps", on_event=lambda tag, _: tags.append(tag))
    assert Path(caught.value.log).is_file()
    assert failures(caught.value.answer, "salt") == caught.value.failures
    assert any(tag.endswith("/ret/legacy") for tag in tags)


def test_further_machine_joins_with_its_key(own: Lab, legacy: LabMachine) -> None:
    own.up(["salt"])
    worker = own.machine("w1", address="198.18.0.30")
    worker.create()
    worker.boot()
    own.access.answering(["w1"])
    worker.destroy()
    assert not own.machine("salt").run("ls /etc/salt/pki/master/minions/w1", check=False).ok


def test_pushed_tree_is_the_work_tree_and_keeps_the_adopted_map(own: Lab) -> None:
    own.up(["salt"])
    master = own.machine("salt")
    master.write("/srv/saltworks/pillar/cluster.sls", "adopted: true\n")
    master.write("/srv/saltworks/salt/stale.sls", "")
    own.push_tree()
    assert master.read("/srv/saltworks/pillar/cluster.sls") == "adopted: true\n"
    assert not master.run("test -e /srv/saltworks/salt/stale.sls", check=False).ok
    assert master.read("/srv/saltworks/pyproject.toml") == (PROJECT / "pyproject.toml").read_text()
    assert not master.run("ls -d /srv/saltworks/.lab /srv/saltworks/.venv", check=False).ok
    assert own.push_tree() == []


STARTER = """
import sys
from pathlib import Path
from tests.lab.driver import Lab
lab = Lab.load(Path(sys.argv[1]), netns=sys.argv[2])
lab.network_up()
lab.machine("proxy").create()
lab.machine("proxy").launch()
print("launched", flush=True)
lab.machine("proxy").await_boot()
sys.stdin.read()
"""


@pytest.mark.parametrize("lost_state", [False, True], ids=["state there", "state file gone"])
def test_clean_leaves_no_trace_after_kill_9(own: Lab, lost_state: bool) -> None:
    lab = Lab.load(own.settings.root.with_name(".lab-kill-test"), netns="swkill")
    command = [sys.executable, "-c", STARTER, str(lab.settings.root), lab.settings.netns]
    with subprocess.Popen(
        command, cwd=PROJECT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == "launched\n"
        starter.kill()
    proxy = lab.machine("proxy")
    wait_for(proxy.init, 30, "the orphaned machine")
    os.kill(proxy.supervisor(), signal.SIGKILL)
    if lost_state:
        (proxy.home / "created").unlink()
        (proxy.home / "layers").unlink()
    assert leftovers(lab.settings)
    clean(lab.settings)
    assert leftovers(lab.settings) == []


def test_half_made_machine_is_made_again(own: Lab) -> None:
    own.network_up()
    machine = own.machine("synapse")
    machine.home.mkdir(parents=True, exist_ok=True)
    (machine.home / "layers").write_text("/no/such/layer\n")
    machine.create()
    assert machine.created
    machine.boot()
    machine.destroy()
    assert not machine.home.exists()


def test_lab_gives_each_machine_a_group_of_its_own(own: Lab, legacy: LabMachine) -> None:
    names = Path(f"/proc/{legacy.init()}/cgroup").read_text()
    assert f"/{own.settings.cgroup}/legacy/" in names
