"""A lab of its own for a test that takes the old server apart, and what such tests look at."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from saltworks import plan, slices

from tests.lab import legacy, m0, milestones, readback, witness
from tests.lab.driver import PROJECT, Lab, LabMachine, SaltRunError, tree, wait_for
from tests.lab.driver.cache import files_digest, made, path_of
from tests.lab.driver.cleanup import clean, leftovers
from tests.lab.driver.settings import ADDRESSES, MASTER

Json = dict[str, Any]

RECORD = "/var/lib/saltworks"
ANNOUNCE_SECONDS = 6
#: What the finalize of M2 asks for.
QUIET_SECONDS = 60
DOOR = "/etc/nginx/saltworks/door.conf"
#: What a test adds to Synapse's unit, so that it does harm or does not start.
SABOTAGE = "/etc/systemd/system/synapse.service.d/sabotage.conf"

WATCHED = (
    *("/etc", "/home/matrix", "/var/backups", "/var/lib/synapse", "/var/www"),
    # Of the master: the tree with the map, what it has built, and what it has recorded.
    *("/srv/saltworks", plan.ARTIFACTS_DIR, RECORD),
)
#: Releases of programs, root's and never changed in place: 12,000 files, whose size and time tell.
RELEASES = ("/opt/synapse", "/opt/saltworks")
# What the running server writes all the time, and what Python writes when it first reads a file.
LIVING = (
    *("*/media_store", "*/uploads", "*.log*", "*/homeserver.db*", "*/__pycache__", "*/*.pid"),
    # Reconcile looks each half minute once there are members, and counts that.
    "*/saltworks/passes.p",
)
UNITS = (
    *("matrix-synapse", "synapse", "nginx", "postgresql@15-main", "slapd", "ssh", "salt-minion"),
    *("salt-master", "redis-server"),
)


@dataclass
class Stage:
    """Master and old server of a lab of its own. seed: what the old server was seeded with."""

    lab: Lab
    seed: Path
    layer: Path

    @property
    def master(self) -> LabMachine:
        return self.lab.machine(MASTER)

    @property
    def legacy(self) -> LabMachine:
        return self.lab.machine(m0.MACHINE)

    def say(self, text: str) -> None:
        """What goes on, for the report of a test that failed."""
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)

    def orchestrate(self, name: str, test: bool = False) -> Json:
        """An orchestration's answer. Raises SaltRunError with every step that failed."""
        self.say(name)
        answer = milestones.orchestrate(self.lab, name, self.say, test=test)
        self.say(f"{name} ended")
        return answer

    def fresh_old_server(self, adopted: bool = True) -> None:
        """The old server as it was seeded, and nothing recorded of the one before."""
        self.legacy.destroy()
        self.legacy.create(layers=[self.layer])
        if self.master.running:
            self.master.run(["rm", "-rf", RECORD, milestones.MAP])
        self.lab.boot([MASTER, m0.MACHINE])
        legacy.await_synapse(self.legacy)
        if adopted:
            milestones.adopt(self.lab, self.seed, self.say)
            announce_briefly(self.lab)

    def in_window(
        self, pool: ThreadPoolExecutor, name: str, machine: str = m0.MACHINE
    ) -> Future[Json]:
        """An orchestration, begun and now in its window: the door of that machine is closed.

        Raises what the orchestration raises if it ends before.
        """
        run = pool.submit(self.orchestrate, name)

        def closed() -> bool:
            return self.is_shut(machine) or run.done()

        wait_for(closed, milestones.ORCHESTRATE_SECONDS, f"the door of {machine} to close")
        if run.done():
            raise AssertionError(f"{name} ended before its door was closed: {run.result()}")
        return run

    @contextlib.contextmanager
    def undone(self, names: Sequence[str]) -> Iterator[None]:
        """What happens to these machines within the block is undone; they are rebooted twice."""
        machines = [self.lab.machine(name) for name in names]
        for machine in machines:
            machine.stop()
            machine.unmount()
            machine.upper.rename(machine.home / "kept")
            machine.lay([machine.home / "kept", *machine.layers])
        self.lab.boot(names)
        yield
        for machine in machines:
            machine.kill()
            machine.settle()
            machine.unmount()
            shutil.rmtree(machine.upper)
            machine.lay(machine.layers)
        self.lab.boot(names)

    def is_shut(self, machine: str = m0.MACHINE) -> bool:
        """Whether a machine's front door is shut; asked without Salt, so at once."""
        look = f"readlink {DOOR} | grep -q closed"
        return self.lab.machine(machine).run(look, check=False).ok

    def door(self, machine: str = m0.MACHINE) -> tuple[str, str | None]:
        """State of a machine's front door and the target it is open to."""
        row = self.lab.salt(machine, "door.status")[machine]
        return row["state"], row["target"]

    def version(self) -> str:
        """Release of the Synapse that answers on the old server's port."""
        url = f"{legacy.ADMIN_URL}/_synapse/admin/v1/server_version"
        return str(json.loads(self.legacy.run(["curl", "-sf", url]).stdout)["server_version"])

    def main_pid(self, unit: str, machine: str = m0.MACHINE) -> str:
        """Process id of a machine's unit, `0` if it does not run."""
        show = ["systemctl", "show", "--property=MainPID", "--value", unit]
        return self.lab.machine(machine).run(show).stdout.strip()

    def await_no_visitor(self) -> None:
        """Wait until nobody has come by the old server's chat site for long enough."""

        def idle() -> float:
            answer = self.lab.salt(m0.MACHINE, "nginx_config.idle_seconds", slices.SITE)
            return float(answer[m0.MACHINE])

        wait_for(lambda: idle() > QUIET_SECONDS, 90, "nobody to come by the old server")

    def state(self, name: str = "m1") -> str:
        """A milestone's state by the record."""
        return milestones.status(self.lab)[name]["state"]


@contextlib.contextmanager
def staged(name: str, database: legacy.Database, adopted: bool = True) -> Iterator[Stage]:
    """A lab called `name`, with an old server; nothing of it stays afterwards."""
    main = Lab.load()
    lab = Lab.load(main.settings.root.with_name(f".lab-{name}"), netns=f"sw{name}")
    clean(lab.settings)
    try:
        found = m0.m0(lab, database)
        stage = Stage(lab, found.seed, found.layer)
        stage.master.create()
        _lend_release(stage)
        lab.push_tree()
        lab.dns_point(milestones.PUBLIC_NAME, stage.legacy.address)
        lab.dns_point("www.lale.test", stage.legacy.address)
        stage.fresh_old_server(adopted)
        yield stage
        _keep_release(stage)
    finally:
        clean(lab.settings)
    assert leftovers(lab.settings) == []


@contextlib.contextmanager
def after_m2(name: str, machines: Sequence[str] = ()) -> Iterator[Stage]:
    """A lab called `name` in which M2 is achieved, on PostgreSQL; nothing of it stays afterwards.

    machines: further ones of the plan, empty, declared with the role that they are named after.
    """
    main = Lab.load()
    kept = _kept_after_m2(main)
    lab = Lab.load(main.settings.root.with_name(f".lab-{name}"), netns=f"sw{name}")
    clean(lab.settings)
    try:
        found = m0.m0(lab, AFTER_M2_DATABASE)
        _copy(kept, lab.settings.root)
        stage = Stage(lab, found.seed, found.layer)
        for machine in (MASTER, *AFTER_M2):
            lab.machine(machine).mount()
        lab.network_up()
        lab.dns_point(milestones.PUBLIC_NAME, lab.settings.addresses["proxy"])
        lab.dns_point("www.lale.test", stage.legacy.address)
        lab.push_tree()
        lab.up([MASTER, *AFTER_M2, *machines])
        milestones.declare(lab, milestones.rows(lab, machines))
        announce_briefly(lab)
        url = milestones.MILESTONES["m2"].admin_url
        answers = f"curl -sf {url}/_matrix/client/versions"
        lab.machine("synapse").wait_for(answers, 90, "Synapse to answer")
        yield stage
    finally:
        clean(lab.settings)
    assert leftovers(lab.settings) == []


def announce_briefly(lab: Lab) -> None:
    """Half a minute before each of many windows would be most of what the tests take.

    The witness's long polls are as much shorter. `make lab` has both in full.
    """
    said = {"announce_seconds": ANNOUNCE_SECONDS}
    milestones.edit_map(lab, lambda cluster: cluster.update(front_door=said))


AFTER_M2 = ("legacy", "proxy", "synapse")
AFTER_M2_DATABASE: legacy.Database = "postgresql"


def _kept_after_m2(lab: Lab) -> Path:
    """A lab in which M2 is achieved, kept in the cache; made if it is missing."""
    return made(lab.settings.cache, "after-m2", _after_m2_inputs(lab), _make_after_m2)


def after_m2_files() -> list[Path]:
    """The files that a lab in which M2 is achieved is made of.

    Not the whole tree: it is pushed anew, and what comes next converges these machines first. Nor
    what Python compiles beside its files while tests run, by which the lab would be made again.
    """
    formulas = ("base", "firewall", "nginx", "relay", "synapse", "transfer")
    folders = (*(f"formulas/{name}/" for name in formulas), "orch/m1/", "orch/m2/")
    # What Synapse's unit is made of: who changed it would restart it in front of everybody.
    unit = "salt/_utils/saltworks/modules.py"
    return [
        PROJECT / name for name in tree.listed() if name.startswith(folders) or name == unit
    ]


def _after_m2_inputs(lab: Lab) -> Json:
    return {
        "files": files_digest(*after_m2_files()),
        "environment": plan.UNIT_ENVIRONMENT,
        # The master has their keys.
        "machines": ADDRESSES,
        "from": [lab.images.base().name, lab.mirror.wheels().name, lab.mirror.legacy().name],
        "m0": legacy.m0_key(AFTER_M2_DATABASE),
    }


def _make_after_m2(folder: Path) -> None:
    with staged("kept", AFTER_M2_DATABASE) as stage:
        stage.orchestrate("orch.m1")
        new = [name for name in AFTER_M2 if name != m0.MACHINE]
        stage.lab.up(new)
        milestones.declare(stage.lab, milestones.rows(stage.lab, new))
        stage.lab.access.answering([MASTER, *AFTER_M2])
        stage.orchestrate("orch.m2")
        stage.lab.down()
        _copy(stage.lab.settings.root, folder)


def _copy(source: Path, destination: Path) -> None:
    """Copy the files of a lab that is down; mounts and what overlayfs works in stay out."""
    left_out = [f"--exclude=/machines/*/{name}" for name in ("root", "work")]
    left_out += ["--exclude=/logs", "--exclude=/dns", "--exclude=/netns"]
    command = ["rsync", "-aHAX", *left_out, f"{source}/", f"{destination}/"]
    subprocess.run(command, check=True, timeout=300)


def _seen(wrong: list[str], report: Json) -> str:
    """What is wrong with a witness's report, and what in it may say why."""
    parts = (
        *("failures", "worst_waits", "troubles", "to_device", "media"),
        *("lost_messages", "duplicated_messages"),
    )
    return json.dumps({"wrong": wrong} | {name: report.get(name) for name in parts}, indent=1)


def assert_unharmed(out: Path, worst_wait: float | None = None) -> None:
    """Nobody lost anything or was refused anything, by the witness's report in `out`."""
    report = json.loads(out.read_text())
    wrong = witness.verdict(report, worst_wait)
    assert wrong == [], _seen(wrong, report)


def assert_reads_as_before(stage: Stage, before: Json) -> None:
    """After M2, everybody sees what he saw `before`; no rule allows a difference."""
    m2 = milestones.MILESTONES["m2"]
    out = stage.lab.settings.reports / "readback-now.json"
    after = milestones.read_back(stage.lab, stage.seed, out, m2)
    different = readback.compare(before, after)
    assert different == [], different


def kill_minion(machine: LabMachine) -> None:
    """All processes of its Salt at once: what it runs, and what that has started."""
    machine.run("systemctl kill --signal=KILL salt-minion")


def _release_inputs(lab: Lab) -> Json:
    sources = [
        *sorted((PROJECT / "formulas/synapse/files/releases").iterdir()),
        *sorted((PROJECT / "formulas/synapse").glob("*.*")),
        *sorted((PROJECT / "salt").glob("_*/synapse_release.py")),
    ]
    names = [lab.images.base().name, lab.mirror.wheels().name]
    return {"builder": files_digest(*sources), "from": names}


def _lend_release(stage: Stage) -> None:
    """The new release as an earlier test built it: building takes half a minute each time."""
    kept = path_of(stage.lab.settings.cache, "release", _release_inputs(stage.lab))
    if kept.exists():
        shutil.copytree(kept, _artifacts(stage), dirs_exist_ok=True)


def _keep_release(stage: Stage) -> None:
    built = _artifacts(stage)

    def keep(folder: Path) -> None:
        shutil.copytree(built, folder, dirs_exist_ok=True)

    # The builder writes the hash last.
    if any(built.glob("*.sha256")):
        made(stage.lab.settings.cache, "release", _release_inputs(stage.lab), keep)


def _artifacts(stage: Stage) -> Path:
    return stage.master.root / plan.ARTIFACTS_DIR.lstrip("/")


def snapshot(machine: LabMachine) -> set[str]:
    """What a run that must change nothing may not change, a line each.

    Files with mode, owner, content or target, those of releases with size and time; units with
    state and main process, and by files of /etc what is enabled; packages; firewall; and of
    PostgreSQL its databases, roles, slots and settings.
    """
    prune = " -o ".join(f"-path {shlex.quote(pattern)}" for pattern in LIVING)
    find = f"find {' '.join(WATCHED)} \\( {prune} \\) -prune -o"
    releases = f"find {' '.join(RELEASES)} \\( {prune} \\) -prune -o"
    show = "systemctl show --property=Id,ActiveState,UnitFileState,MainPID,DropInPaths"
    # One line for each unit: what is not loaded still says so.
    sql = (
        "SELECT 'database ' || datname FROM pg_database UNION ALL "
        "SELECT 'role ' || rolname FROM pg_roles UNION ALL "
        "SELECT 'slot ' || slot_name FROM pg_replication_slots UNION ALL "
        "SELECT 'setting ' || name || ' ' || setting FROM pg_settings WHERE source <> 'session'"
    )
    script = f"""
        {find} -printf 'entry %p %y %m %u %g %l\\n' 2>/dev/null
        {find} -type f -print0 2>/dev/null | sort -z | xargs -0 sha256sum
        {releases} -type d -printf 'entry %p %y %m %u %g\\n' \\
            -o -printf 'entry %p %y %m %u %g %s %T@ %l\\n' 2>/dev/null
        for unit in {" ".join(UNITS)}; do echo $({show} $unit); done
        dpkg-query -W
        nft --stateless list ruleset
        if systemctl -q is-active postgresql@15-main; then
            runuser -u postgres -- psql -AtXc {shlex.quote(sql)}
        fi
    """
    lines = set(machine.run(script, timeout=120).stdout.splitlines())
    assert len(lines) > 500, f"a snapshot of {machine.name} cannot be so small: {lines}"
    return lines


def snapshots(stage: Stage, machines: Sequence[str]) -> set[str]:
    """:func:`snapshot` of several machines, each line with the machine's name."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda name: snapshot(stage.lab.machine(name)), machines)
        return {f"{name} {line}" for name, lines in zip(machines, found, strict=True)
                for line in lines}


def assert_as_found(stage: Stage) -> None:
    """The old release serves behind our door."""
    assert stage.door() == ("open", "found")
    assert stage.version() == legacy.VERSION
    assert stage.main_pid("matrix-synapse") != "0"
    assert stage.main_pid("synapse") == "0"
    assert stage.state() == "rolled-back"


def assert_a_failed_verify_harms_nobody(stage: Stage, before: Json, delete: str) -> None:
    """M1 whose verify finds something lost goes back, and nobody notices.

    before: what clients read on the server as found.
    delete: command that takes ``user_filters`` out of the database, as the new release starts.
    """
    machine = stage.legacy
    machine.write(SABOTAGE, f"[Service]\nExecStartPre=+{delete}\n")
    machine.run("systemctl daemon-reload")
    reports = stage.lab.settings.reports
    out = reports / "rollback.json"
    with milestones.chatting(stage.lab, stage.seed, out), pytest.raises(SaltRunError) as failed:
        stage.orchestrate("orch.m1")
    assert any(
        "upgrade-nothing-lost" in line and "count of user_filters" in line
        for line in failed.value.failures
    ), failed.value.failures
    assert_unharmed(out)
    assert_as_found(stage)
    after = milestones.read_back(stage.lab, stage.seed, reports / "back.json")
    # The same release: not even a difference that the whitelist explains.
    different = readback.compare(before, after)
    assert different == [], different
    machine.run(f"rm -r {SABOTAGE.rpartition('/')[0]} && systemctl daemon-reload")


def steps(answer: Any) -> Json:
    """Each step of an orchestration by its id."""
    return {str(row["__id__"]): row for row in answer["data"]["salt_master"].values()}


def changes(answer: Any) -> list[str]:
    """Every step and every state on any minion, in an orchestration's answer, that changed."""
    if not isinstance(answer, dict):
        return []
    found = []
    for key, value in answer.items():
        if "_|-" in str(key) and isinstance(value, dict) and value.get("changes"):
            below = changes(value["changes"])
            found += below or [f"{value.get('__id__', key)}: {value['changes']}"]
        else:
            found += changes(value)
    return found


def main() -> None:
    """Make what :func:`after_m2` copies (``python -m tests.lab.stage``).

    `make test` runs it beside the tests that come first.
    """
    # Told to end, it takes away what it has begun.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    _kept_after_m2(Lab.load())


if __name__ == "__main__":
    main()
