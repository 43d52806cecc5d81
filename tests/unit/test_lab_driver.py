"""The lab driver's decisions: what it reads from the host and from Salt's answers."""

from __future__ import annotations

import py_compile
import ssl
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from saltworks import pki, worker_table

from tests.lab import stage
from tests.lab.driver import (
    PROJECT,
    Lab,
    LabError,
    cache,
    cgroups,
    cleanup,
    hostapt,
    hostcheck,
    hostpip,
    network,
    oldpostgres,
    saltaccess,
    saltanswer,
    tree,
)
from tests.lab.driver.authority import Authority
from tests.lab.driver.settings import ADDRESSES, MASTER, WORKER_NETWORK, WORKERS, Settings

DEB822 = """\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian.gpg

Types: deb
URIs: http://mirror.example/security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
"""

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://mirror.example/debian bookworm main # end
deb-src http://mirror.example/debian bookworm main
deb http://other.example/apt stable main
"""


def test_deb822_sources_are_read() -> None:
    entries = hostapt.parse_deb822(DEB822)
    assert [entry.suite for entry in entries] == [
        "bookworm",
        "bookworm-updates",
        "bookworm-security",
    ]
    assert entries[0].components == ("main", "contrib")
    assert entries[0].keyring == "/usr/share/keyrings/debian.gpg"


def test_one_line_sources_are_read() -> None:
    entries = hostapt.parse_list(ONE_LINE)
    assert [(entry.uri, entry.suite) for entry in entries] == [
        ("http://mirror.example/debian", "bookworm"),
        ("http://other.example/apt", "stable"),
    ]
    assert entries[0].keyring == "/k.gpg"


def test_archive_is_debian_main_with_its_security_suite() -> None:
    found = hostapt.choose(hostapt.parse_deb822(DEB822), "bookworm")
    assert found is not None
    assert found.main == "http://mirror.example/debian"
    assert found.security == "http://mirror.example/security"
    assert found.updates
    assert found.sources().count("deb ") == 3


def test_third_party_sources_are_no_archive() -> None:
    entries = [hostapt.Entry("http://other.example", "tool-bookworm", ("main",))]
    assert hostapt.choose(entries, "bookworm") is None


def test_pip_settings_environment_beats_file() -> None:
    text = (
        "global.index-url='http://index.example/simple'\n"
        "global.find-links='/a /b'\n"
        ":env:.index-url='http://env.example/simple'\n"
        ":env:.cert='/ca.pem'\n"
    )
    found = hostpip.parse(text, {})
    assert found.index == "http://env.example/simple"
    assert found.links == ("/a", "/b")
    assert found.pip_env()["PIP_CERT"] == "/ca.pem"
    assert found.uv_env()["UV_DEFAULT_INDEX"] == "http://env.example/simple"


def test_pip_settings_take_the_certificate_from_the_environment() -> None:
    assert hostpip.parse("", {"SSL_CERT_FILE": "/bundle"}).cert == "/bundle"


def test_npm_settings_environment_beats_files_and_the_first_file_the_next() -> None:
    files = ["registry=http://mine.example/\n", "registry = http://all.example/\ncafile=/ca.pem"]
    assert oldpostgres.parse(files, {}) == ("http://mine.example/", "/ca.pem")
    said = {"npm_config_registry": "http://env.example/"}
    assert oldpostgres.parse(files, said) == ("http://env.example/", "/ca.pem")
    with pytest.raises(LabError, match=r"registry=<its URL>"):
        oldpostgres.parse([], {})


def test_an_old_postgresql_of_another_content_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = oldpostgres.locked()
    name = f"{lock['package'].rpartition('/')[2]}-{lock['version']}.tgz"
    archive = tmp_path / lock["package"] / "-" / name
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"something else")
    monkeypatch.setattr(oldpostgres, "settings", lambda: (tmp_path.as_uri(), ""))
    with pytest.raises(LabError, match=r"its sha512 is .* postgresql-old\.json says"):
        oldpostgres.programs(tmp_path / "cache")
    archive.unlink()
    with pytest.raises(LabError, match="npm config get registry"):
        oldpostgres.programs(tmp_path / "cache")


HYBRID = """\
30 24 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
"""
V2 = "30 24 0:26 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [(HYBRID, ["unified", "systemd"]), (V2, ["cgroup"])],
    ids=["hybrid", "v2"],
)
def test_control_group_hierarchies(text: str, expected: list[str]) -> None:
    assert [path.name for path in cgroups.hierarchies(text)] == expected


def test_mounts_below_are_deepest_first_and_unescaped() -> None:
    text = (
        "1 0 0:1 / / rw - ext4 /dev/x rw\n"
        "2 1 0:2 / /a\\040b/.lab/machines/x/root rw - overlay overlay rw\n"
        "3 2 0:3 / /a\\040b/.lab/machines/x/root/proc rw - proc proc rw\n"
        "4 1 0:4 / /a\\040b/.laboratory rw - ext4 /dev/y rw\n"
    )
    found = cleanup.mounts_below(text, Path("/a b/.lab"))
    assert [path.name for path in found] == ["proc", "root"]


def test_memory_is_refused_with_a_figure() -> None:
    assert hostcheck.memory_problems("MemAvailable:   99999999 kB\n") == []
    (problem,) = hostcheck.memory_problems("MemAvailable:   2097152 kB\n")
    assert "2.0 GiB of memory available, 6 GiB needed" in problem


@pytest.mark.parametrize(("found", "left"), [("128\n", "1024\n"), ("8192\n", "8192\n")])
def test_the_kernel_s_bound_is_raised_and_never_lowered(
    tmp_path: Path, found: str, left: str
) -> None:
    file = tmp_path / "max_user_instances"
    file.write_text(found)
    hostcheck.raise_inotify(file)
    assert file.read_text() == left


def test_cached_thing_is_made_once_and_half_made_ones_are_made_again(tmp_path: Path) -> None:
    calls: list[Path] = []

    def breaks(work: Path) -> None:
        (work / "half").touch()
        raise RuntimeError

    def works(work: Path) -> None:
        calls.append(work)
        assert not list(work.iterdir())

    with pytest.raises(RuntimeError):
        cache.made(tmp_path, "thing", ["v1"], breaks)
    assert not cache.path_of(tmp_path, "thing", ["v1"]).exists()
    assert cache.made(tmp_path, "thing", ["v1"], works).exists()
    cache.made(tmp_path, "thing", ["v1"], works)
    assert len(calls) == 1
    assert cache.path_of(tmp_path, "thing", ["v2"]) != cache.path_of(tmp_path, "thing", ["v1"])


def test_tree_rules_send_only_what_is_listed_and_protect_the_adopted_map() -> None:
    lines = tree.rules(["salt/a[1].sls", "Makefile"], ["pillar/cluster.sls"]).splitlines()
    assert lines[0] == "- /pillar/cluster.sls"
    assert "P /pillar/secrets.sls" in lines
    assert "+ /salt/" in lines
    assert "+ /salt/a\\[1].sls" in lines
    assert lines[-1] == "- *"


@pytest.mark.parametrize(
    ("path", "restart"),
    [("salt/_utils/saltworks/plan.py", True), ("salt/_modules/x.py", False), ("README.md", False)],
)
def test_only_what_the_master_has_loaded_restarts_it(path: str, restart: bool) -> None:
    assert tree.Pushed([path]).restart is restart


def _step(result: bool | None, comment: str = "", **more: object) -> dict[str, object]:
    return {"result": result, "comment": comment, "__id__": "the id", "changes": more}


def test_json_is_found_among_noise() -> None:
    text = '[WARNING ] something\nprogress 1\n{\n    "a": 1\n}\nunclosed Runner\n'
    assert saltanswer.parse_json(text) == {"a": 1}
    assert saltanswer.parse_json("true\n") is True
    with pytest.raises(ValueError, match="no JSON"):
        saltanswer.parse_json("nothing here\n")


def test_missing_function_fails_though_salt_run_exits_0() -> None:
    assert saltanswer.verdict("'foo.bar' is not available.", 0, "salt")


@pytest.mark.parametrize(
    "answer",
    [["a", "b"], {"args": [1]}, True, None, "the disk is not available for now", {"a": False}],
    ids=str,
)
def test_plain_answers_are_no_failure(answer: object) -> None:
    assert saltanswer.verdict(answer, 0, "salt") == []


def test_failed_state_is_named_with_its_machine_and_before_what_it_broke() -> None:
    inner = {
        "file_|-b_|-b_|-managed": _step(False, "One or more requisite failed: a"),
        "file_|-a_|-a_|-managed": _step(False, "Parent directory not present"),
        "file_|-c_|-c_|-managed": _step(True),
    }
    steps = {"salt_|-one_|-one_|-state": _step(False, "Run failed", ret={"legacy": inner})}
    answer = {"data": {"salt_master": steps}, "retcode": 1}
    found = saltanswer.verdict(answer, 1, "salt")
    assert found[0] == "legacy: the id: Parent directory not present"
    assert len(found) == 2


def test_rendering_errors_and_runner_exceptions_are_told_in_one_line() -> None:
    trace = "Exception occurred in runner x.y: Traceback (most recent call last):\n  f\nE: boom"
    steps = {
        "salt_|-one_|-one_|-state": _step(False, "failed", ret={"proxy": ["No matching sls"]}),
        "salt_|-two_|-x.y_|-runner": {**_step(False, "failed"), "changes": {"return": trace}},
    }
    found = saltanswer.verdict({"data": {"salt_master": steps}, "retcode": 1}, 1, "salt")
    assert found == [
        "proxy: No matching sls",
        "salt_master: the id: Exception occurred in runner x.y: E: boom",
    ]


def test_failure_without_a_failed_step_is_still_one() -> None:
    assert saltanswer.verdict({"data": {}, "retcode": 1}, 1, "salt")
    assert saltanswer.verdict({"x": 1}, 2, "salt")


def test_one_authority_vouches_for_the_machines_of_every_lab(tmp_path: Path) -> None:
    labs = [Settings(tmp_path / name, name, tmp_path / "cache") for name in ("a", "b")]
    for settings in labs:
        chain, key = Authority(settings).issue(["chat.lale.test", "lale.test"])
        authority = settings.ca.read_text()
        assert chain.endswith(authority)
        assert pki.serves(chain, authority, ["chat.lale.test", "lale.test"], datetime.now(UTC))
        pem = tmp_path / "server.pem"
        pem.write_text(chain + key)
        # Refuses a key that is not the certificate's.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(pem)
    assert labs[0].ca.read_bytes() == labs[1].ca.read_bytes()
    assert (tmp_path / "cache/ca/ca.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("folder", "refused"), [("/elsewhere/.lab", True), ("", False)])
def test_the_network_of_another_clone_is_left_alone(
    folder: str, refused: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hosts = f"{folder or tmp_path}/dns/hosts".encode()
    monkeypatch.setattr(
        network, "command_lines", lambda: [(7, [b"dnsmasq", b"--addn-hosts=" + hosts])]
    )
    monkeypatch.setattr("os.path.samefile", lambda *_: True)
    settings: Any = SimpleNamespace(netns="saltworks", root=tmp_path)
    ours = network.Network(settings)
    assert bool(ours.tenant()) is refused
    if refused:
        with pytest.raises(LabError, match=f"is the lab's in {folder}: `make clean-lab` there"):
            ours.up()


def test_workers_of_the_plan_are_of_a_kind_and_have_a_network_of_their_own() -> None:
    own = ip_network(WORKER_NETWORK)
    for address in WORKERS.values():
        assert ip_address(address) in own
    kinds = {name.rpartition("-")[0] for name in WORKERS}
    assert kinds == set(worker_table.table().kinds)
    assert [name for name, row in ADDRESSES.items() if ip_address(row) in own] == []


def test_a_worker_is_known_by_its_name_and_the_master_has_no_key_of_it(tmp_path: Path) -> None:
    lab = Lab.load(tmp_path, "none")
    assert lab.machine("sync-1").address == WORKERS["sync-1"]
    with pytest.raises(LabError, match="no machine is called sync-9"):
        lab.machine("sync-9")
    for name in (MASTER, "sync-1"):
        saltaccess.configure(lab.settings, name, tmp_path / name, lab.acceptable())
    accepted = tmp_path / MASTER / "etc/salt/pki/master/minions"
    assert {path.name for path in accepted.iterdir()} == set(ADDRESSES)


def test_cpu_is_counted_by_unit(tmp_path: Path) -> None:
    for unit, text in (
        ("system.slice/synapse.service", "usage_usec 2500000\nuser_usec 1\n"),
        ("system.slice/system-synapse\\x2dworker.slice/synapse-worker@sync-1-1.service",
         "usage_usec 500000\n"),
        ("init.scope", "usage_usec 9\n"),
    ):
        (tmp_path / unit).mkdir(parents=True)
        (tmp_path / unit / "cpu.stat").write_text(text)
    found = cgroups.unit_cpu(tmp_path)
    assert found == {"synapse.service": 2.5, "synapse-worker@sync-1-1.service": 0.5}


def test_a_frozen_group_is_thawed_whatever_happens(tmp_path: Path) -> None:
    switch = tmp_path / "cgroup.freeze"

    def fails() -> None:
        with cgroups.frozen(tmp_path):
            assert switch.read_text() == "1"
            raise LabError("meanwhile")

    with pytest.raises(LabError):
        fails()
    assert switch.read_text() == "0"


def test_what_python_compiles_beside_its_files_makes_no_lab_anew() -> None:
    before = stage.after_m2_files()
    plugin = PROJECT / "formulas/synapse/files/plugins/saltworks_patience.py"
    assert {plugin, PROJECT / "orch/m2/apply.sls"} < {*before}
    py_compile.compile(str(plugin))
    assert stage.after_m2_files() == before
