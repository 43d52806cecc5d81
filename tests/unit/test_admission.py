"""Admission over a key store in memory: what is written before what, and who is refused."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import pytest
from saltworks import admission, invites, join_machine, plan, registry
from saltworks.errors import Refused
from saltworks.keys import Key
from saltworks.membership import Declared

from tests.cluster import WORKER_MAP
from tests.unit.house import Records

PUBLIC = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkq\n-----END PUBLIC KEY-----"
ANOTHER = PUBLIC.replace("kq", "KQ")
OWN = invites.fingerprint(PUBLIC)


class Vault:
    def get(self, name: str) -> str:
        assert name == invites.KEY
        return "k"


class House:
    """A tree with a map, records and a vault; ``log`` says what was written, in order."""

    clustered = False

    def __init__(
        self, log: list[str], cmap: Any = WORKER_MAP, pattern: str = "sync-2"
    ) -> None:
        self.invite = invites.fresh(pattern, 1, 600, 0)
        self.store = Records(invites=invites.rows({pattern: self.invite}))
        self.vault, self.log, self._map = Vault(), log, cmap

    def map(self) -> Any:
        return self._map

    def placement(self, cmap: Any) -> plan.Placement:
        return plan.Placement("synapse", True, "proxy", clustered=self.clustered)

    @contextlib.contextmanager
    def changing(self, key: str) -> Iterator[dict[str, Any]]:
        row = dict(self.store.rows.get(key, {}))
        yield row
        self.store.rows[key] = row
        self.log.append(f"{key} written")


class Keys:
    """The key store, with what was done to it."""

    def __init__(self, log: list[str], key: Key | None, sound: bool = True) -> None:
        self.key, self.log, self.sound = key, log, sound

    def get(self, minion: str) -> Key | None:
        return self.key

    def put_pending(self, minion: str, public: str) -> None:
        self.log.append("key replaced")
        self.key = Key("pending", public)

    def accept(self, minion: str) -> None:
        self.log.append("key accepted")
        if self.sound:
            assert self.key is not None
            self.key = Key("accepted", self.key.public)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first second."""
    monkeypatch.setattr(time, "time", lambda: 1.0)


def admit(house: House, keys: Keys, minion: str = "sync-2", public: str = PUBLIC) -> None:
    proof = join_machine.proof_of(invites.secret_of(house.invite, "k"), minion, public)
    admission.admit(house, keys, minion, public, proof)  # type: ignore[arg-type]


def test_the_use_is_written_before_the_key_is_accepted() -> None:
    log: list[str] = []
    house = House(log)
    admit(house, Keys(log, Key("pending", PUBLIC)))
    assert log == [
        "invites written", "out written", "joins written", "key accepted", "registry written",
    ]  # fmt: skip
    assert house.store.rows["invites"]["sync-2"]["used"] == {"sync-2": OWN}
    assert house.store.rows["registry"]["sync-2"]["key"] == OWN
    log.clear()
    admit(house, Keys(log, Key("accepted", PUBLIC)))
    assert "key accepted" not in log, "once is enough"


def test_the_invited_key_takes_the_place_of_one_that_only_waits() -> None:
    log: list[str] = []
    keys = Keys(log, Key("pending", ANOTHER))
    admit(House(log), keys)
    assert log == [
        "invites written", "out written", "joins written",
        "key replaced", "key accepted", "registry written",
    ]  # fmt: skip
    assert keys.key == Key("accepted", PUBLIC)


@pytest.mark.parametrize(
    ("key", "why"),
    [
        (None, "no key waits"),
        (Key("accepted", ANOTHER), "another key is accepted"),
        (Key("rejected", PUBLIC), "an operator rejected"),
    ],
)
def test_a_proof_does_not_overrule_the_key_store(key: Key | None, why: str) -> None:
    log: list[str] = []
    with pytest.raises(Refused, match=why):
        admit(House(log), Keys(log, key))
    assert log == []


def test_who_is_no_worker_in_the_map_or_a_member_with_another_key_is_refused() -> None:
    log: list[str] = []
    machines = {**WORKER_MAP["machines"], "sync-2": {"role": "proxy", "address": "198.18.0.9"}}
    for cmap in (None, {**WORKER_MAP, "machines": machines}):
        with pytest.raises(Refused, match="the cluster map has no worker or database of that id"):
            admit(House(log, cmap), Keys(log, Key("pending", PUBLIC)))
    house = House(log)
    other = registry.admitted({}, "sync-2", Declared("sync"), "f" * 64, "2026-11-26T17:00:00Z")
    house.store.rows["registry"] = registry.rows(other)
    with pytest.raises(Refused, match="is a member with another key"):
        admit(house, Keys(log, Key("pending", PUBLIC)))
    assert log == []


def test_a_worker_is_written_down_as_reading_from_standbys_once_there_may_be_some() -> None:
    cmap = {**WORKER_MAP, "database": {"standby_reads": True}}
    for clustered in (False, True):
        log: list[str] = []
        house = House(log, cmap)
        house.clustered = clustered
        admit(house, Keys(log, Key("pending", PUBLIC)))
        assert house.store.rows["registry"]["sync-2"]["reads"] is clustered


def test_a_database_is_let_in_by_an_invite_of_its_own_alone() -> None:
    machines = {**WORKER_MAP["machines"], "sync-2": {"role": "database", "address": "198.18.0.9"}}
    cmap = {**WORKER_MAP, "machines": machines, "database": {"first": "database"}}
    log: list[str] = []
    with pytest.raises(Refused, match="by an invite of its own"):
        admit(House(log, cmap, pattern="sync-*"), Keys(log, Key("pending", PUBLIC)))
    assert log == []
    house = House(log, cmap)
    admit(house, Keys(log, Key("pending", PUBLIC)))
    assert house.store.rows["registry"]["sync-2"]["kind"] == "database"


def test_what_salt_does_not_accept_is_no_member() -> None:
    log: list[str] = []
    with pytest.raises(Refused, match="is it a public key"):
        admit(House(log), Keys(log, Key("pending", PUBLIC), sound=False))
    assert log == ["invites written", "out written", "joins written", "key accepted"]


def test_a_new_invite_lets_a_drained_machine_in_and_an_old_proof_does_not() -> None:
    log: list[str] = []
    house = House(log)
    out = {"sync-2": {"since": "", "remove_key": False}}
    house.store.rows["out"] = dict(out)
    house.store.rows["joins"] = {"sync-2": {"failures": 5, "error": "no", "not_before": 9e9}}
    admit(house, Keys(log, Key("pending", PUBLIC)))
    assert house.store.rows["out"] == {}
    assert house.store.rows["joins"]["sync-2"]["not_before"] == 0.0, "and at once"
    house.store.rows["out"] = dict(out)
    admit(house, Keys(log, Key("accepted", PUBLIC)))
    assert house.store.rows["out"] == out


@pytest.mark.parametrize("minion", ["*", "sync-*", "../x", "sync-2\n", "{{ a }}"])
def test_an_id_that_is_none_reaches_no_store(minion: str) -> None:
    log: list[str] = []
    with pytest.raises(Refused, match="has not the form of one"):
        admit(House(log), Keys(log, None), minion)
    assert log == []


def test_a_machine_whose_key_was_removed_does_not_come_back_by_its_invite() -> None:
    log: list[str] = []
    house = House(log)
    admit(house, Keys(log, Key("pending", PUBLIC)))
    rows = house.store.rows
    rows["invites"] = invites.rows(invites.spent(invites.of(rows["invites"]), "sync-2"))
    rows["registry"] = {}
    with pytest.raises(Refused, match="was used by another key"):
        admit(house, Keys(log, Key("pending", PUBLIC)))
