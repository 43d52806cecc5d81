"""The formulas' own states: no change when nothing is to change, truth in test mode, no secrets."""

from __future__ import annotations

import grp
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from salt.exceptions import CommandExecutionError

from tests.unit.modules.minion_modules import load

SECRET = "s3cret"
GROUP = grp.getgrgid(os.getgid()).gr_name


def refuse(*args: Any, **kwargs: Any) -> Any:
    raise CommandExecutionError("no such luck")


def must_not(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("nothing may be done here")


def release_state(test: bool = False, **salt: Any) -> Any:
    return load("_states", "synapse_release", test=test, salt={
        f"synapse_release.{name}": value for name, value in salt.items()
    })


def test_present_release_is_not_unpacked_again() -> None:
    state = release_state(installed=lambda v: {"source_hash": "sha256=1"}, unpack=must_not)
    done = state.present("1.163.2", "salt://r.tar.gz", "sha256=1")
    assert (done["result"], done["changes"]) == (True, {})


def test_missing_release_is_announced_in_test_mode() -> None:
    state = release_state(test=True, installed=lambda v: {}, unpack=must_not)
    done = state.present("1.163.2", "salt://r.tar.gz", "sha256=1")
    assert done["result"] is None
    assert done["changes"] == {"release": {"old": None, "new": "sha256=1"}}


def test_release_that_cannot_be_unpacked_changes_nothing() -> None:
    state = release_state(installed=lambda v: {}, unpack=refuse)
    done = state.present("1.163.2", "salt://r.tar.gz", "sha256=1")
    assert (done["result"], done["changes"], done["comment"]) == (False, {}, "no such luck")


@pytest.mark.parametrize(("source", "digest"), [("", "sha256=1"), ("salt://r", ""), ("s", "md5=1")])
def test_release_without_source_says_what_is_missing(source: str, digest: str) -> None:
    done = release_state(installed=must_not).present("1.163.2", source, digest)
    assert done["result"] is False
    assert "synapse:release" in done["comment"]


def test_built_release_is_not_built_again() -> None:
    found = {"present": True, "path": "/srv/r.tar.gz", "source_hash": "sha256=1"}
    state = release_state(describe=lambda *a: found, build=must_not)
    assert state.built("1.163.2", "salt://r.txt", "/srv")["changes"] == {}


class Config:
    """A homeserver.yaml below a folder and a release that judges it."""

    def __init__(self, folder: Path, test: bool = False, config: Any = None) -> None:
        self.path = folder / "homeserver.yaml"
        self.checked: list[dict[str, Any]] = []
        self.accepts = True
        #: Pillar key to name, and the files that the release read, in their order.
        self.workers: dict[str, str] = {}
        self.read: list[list[str]] = []
        self.state = load("_states", "synapse_release", test=test, salt={
            "pillar.get": self._pillar, "synapse_release.check_config": self._check,
        })
        self.config = {"server_name": "a.test", "form_secret": SECRET} if config is None else config

    def _pillar(self, key: str, default: Any, unmask: bool = False) -> Any:
        # Outside of a template Salt 3008 gives asterisks unless asked otherwise.
        assert unmask
        if key in self.workers:
            return {"worker_name": self.workers[key]}
        assert key == "synapse:config"
        return self.config

    def _check(
        self, version: str, path: str, user: str, environment: dict[str, str], base: str
    ) -> None:
        self.checked.append(yaml.safe_load(Path(path).read_text("utf-8")))
        self.read.append([Path(name).name for name in (base, path) if name])
        if not self.accepts:
            refuse()

    def apply(self, version: str = "1.163.2") -> dict[str, Any]:
        done = self.state.configured(
            str(self.path), version, "synapse:config", "synapse", GROUP,
            defaults={"log_config": "/etc/synapse/log.yaml", "server_name": "default"},
            read_by={str(self.worker(name)): key for key, name in self.workers.items()},
        )
        assert isinstance(done, dict)
        return done

    def worker(self, name: str) -> Path:
        return self.path.with_name(f"{name}.yaml")

    def apply_worker(self, key: str) -> dict[str, Any]:
        path, base = self.worker(self.workers[key]), str(self.path)
        done = self.state.configured(str(path), "1.163.2", key, "synapse", GROUP, base=base)
        assert isinstance(done, dict)
        return done


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="the file must be root's")


@needs_root
def test_config_is_checked_before_it_is_there(tmp_path: Path) -> None:
    config = Config(tmp_path)
    assert config.apply()["result"] is True
    wanted = {"server_name": "a.test", "form_secret": SECRET, "log_config": "/etc/synapse/log.yaml"}
    assert config.checked == [wanted]
    assert yaml.safe_load(config.path.read_text("utf-8")) == wanted
    assert oct(config.path.stat().st_mode & 0o777) == "0o640"
    assert config.apply()["changes"] == {}
    assert len(config.checked) == 1


@needs_root
def test_config_that_is_refused_does_not_replace_the_old(tmp_path: Path) -> None:
    config = Config(tmp_path)
    config.apply()
    before = config.path.read_text("utf-8")
    config.accepts = False
    config.config["form_secret"] = "other"
    done = config.apply()
    assert (done["result"], done["changes"]) == (False, {})
    assert config.path.read_text("utf-8") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["homeserver.yaml"]


@needs_root
def test_config_is_checked_again_by_another_release(tmp_path: Path) -> None:
    config = Config(tmp_path)
    config.apply()
    config.apply(version="1.164.0")
    assert len(config.checked) == 2


@needs_root
def test_config_of_workers_alone_is_read_as_they_read_it_and_once(tmp_path: Path) -> None:
    config = Config(tmp_path)
    config.workers = {"a": "sync-1-1", "b": "sync-1-2"}
    both = [[".homeserver.yaml.new", f".sync-1-{n}.yaml.new"] for n in (1, 2)]
    assert config.apply()["result"] is config.apply_worker("a")["result"] is True
    assert config.apply_worker("b")["changes"]
    assert config.read == both
    # What they share changes: one of them tells as much as all.
    config.config["form_secret"] = "other"
    assert config.apply()["changes"]
    assert config.read[2:] == both[:1]
    # Theirs alone changes.
    config.worker("sync-1-2").unlink()
    assert config.apply()["changes"] == {}
    config.state.__context__.clear()
    config.apply_worker("b")
    assert config.read[3:] == [["homeserver.yaml", ".sync-1-2.yaml.new"]]
    config.accepts = False
    config.config["form_secret"] = "third"
    assert config.apply()["result"] is False
    names = {"homeserver.yaml", "sync-1-1.yaml", "sync-1-2.yaml"}
    assert {entry.name for entry in tmp_path.iterdir()} == names


def test_config_shows_no_secret(tmp_path: Path) -> None:
    config = Config(tmp_path, test=True)
    done = config.apply()
    assert done["result"] is None
    assert SECRET not in str(done)
    assert not config.path.exists()


@pytest.mark.parametrize("wrong", ["", [], {}, "text"])
def test_config_must_be_a_mapping(tmp_path: Path, wrong: Any) -> None:
    done = Config(tmp_path, config=wrong).apply()
    assert done["result"] is False
    assert "synapse:config" in done["comment"]


def door_state(status: dict[str, Any], test: bool = False, **salt: Any) -> Any:
    return load("_states", "door", test=test, salt={
        "door.status": lambda: status, **{f"door.{k}": v for k, v in salt.items()},
    })


def test_door_that_stands_right_is_left_alone() -> None:
    assert door_state({"state": "open", "target": "a"}, open=must_not).opened("a")["changes"] == {}
    assert door_state({"state": "closed"}, close=must_not).closed("x")["changes"] == {}
    state = door_state({"state": "closed", "target": None}, first_target=must_not)
    assert state.first_target("a")["changes"] == {}


def test_door_in_test_mode_says_what_it_would_do() -> None:
    state = door_state({"state": "open", "target": "a"}, test=True, open=must_not, close=must_not)
    done = state.opened("b")
    assert done["result"] is None
    assert done["changes"] == {"door": {"old": "open to a", "new": "open to b"}}
    assert state.closed("x")["result"] is None


def test_door_that_cannot_be_moved_fails_with_the_reason() -> None:
    state = door_state({"state": "closed", "target": None}, open=refuse)
    done = state.opened("a")
    assert (done["result"], done["changes"], done["comment"]) == (False, {}, "no such luck")


def nginx_state(disk: str, running: str, events: list[str], test: bool = False) -> Any:
    def reload(timeout: float) -> dict[str, Any]:
        events.append("reload")
        return {"seconds": 0.1}

    return load("_states", "nginx_config", test=test, salt={
        "nginx_config.digest": lambda: disk, "nginx_config.loaded": lambda: running,
        "nginx_config.notice": lambda seconds: events.append("notice"),
        "nginx_config.withdraw": lambda: events.append("withdraw"),
        "nginx_config.reload": reload,
    })


def test_nginx_is_reloaded_only_for_another_configuration() -> None:
    events: list[str] = []
    assert nginx_state("a", "a", events).loaded("x")["changes"] == {}
    assert nginx_state("a", "a", events).mod_watch("x")["changes"] == {}
    # A notice of a run that died goes.
    assert events == ["withdraw", "withdraw"]
    events.clear()
    assert nginx_state("b", "a", events).loaded("x")["changes"]
    assert events == ["notice", "reload", "withdraw"]


def test_nginx_in_test_mode_tells_of_files_not_yet_written() -> None:
    events: list[str] = []
    assert nginx_state("a", "a", events, test=True).mod_watch("x")["result"] is None
    assert events == []


def units(tmp_path: Path, events: list[str], test: bool = False) -> Any:
    for name in ("saltworks-relay-a.socket", "saltworks-relay-a.service",
                 "saltworks-relay-b.socket", "other.service", "saltworks-relay-a.txt"):
        (tmp_path / name).touch()
    state: Any = load("_states", "unit_set", test=test, salt={
        "service.stop": lambda unit: events.append(f"stop {unit}"),
        "service.disable": lambda unit: events.append(f"disable {unit}"),
        "service.systemctl_reload": lambda: events.append("daemon-reload"),
    })
    state.UNIT_DIR = str(tmp_path)
    return state


def test_units_that_are_not_named_go_sockets_first(tmp_path: Path) -> None:
    events: list[str] = []
    state = units(tmp_path, events)
    done = state.only("saltworks-relay-", ["saltworks-relay-b.socket"])
    assert events == [
        "stop saltworks-relay-a.socket", "disable saltworks-relay-a.socket",
        "stop saltworks-relay-a.service", "disable saltworks-relay-a.service", "daemon-reload",
    ]
    assert set(done["changes"]) == {"saltworks-relay-a.socket", "saltworks-relay-a.service"}
    assert {entry.name for entry in tmp_path.iterdir()} == {
        "saltworks-relay-b.socket", "other.service", "saltworks-relay-a.txt",
    }
    assert state.only("saltworks-relay-", ["saltworks-relay-b.socket"])["changes"] == {}


def test_units_stay_in_test_mode(tmp_path: Path) -> None:
    done = units(tmp_path, [], test=True).only("saltworks-relay-", [])
    assert done["result"] is None
    assert len(done["changes"]) == 3
    assert len(list(tmp_path.iterdir())) == 5
