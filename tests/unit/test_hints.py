"""What the reactors make of events: checked scalars, or nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from saltworks import hints, invites, join_machine, lock
from saltworks.hints import Recent, Refusals, Request

from tests.unit.house import Records

PUBLIC = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkq\n-----END PUBLIC KEY-----"
PROOF = "a" * 64
BIG = "x" * 1_000_000
GOOD: dict[str, Any] = {
    "act": "pend", "id": "sync-2", "pub": PUBLIC, "autosign_grains": {"join_proof": PROOF},
}  # fmt: skip


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What is logged; Salt's own handler would print it after pytest's last line."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    monkeypatch.setattr(hints.log, "propagate", False)
    hints.log.addHandler(handler)
    yield found
    hints.log.removeHandler(handler)


def test_a_good_event_is_three_checked_scalars() -> None:
    for act in ("pend", "denied"):
        assert hints.request({**GOOD, "act": act}) == Request("sync-2", PUBLIC, PROOF)


@pytest.mark.parametrize(
    "change",
    [{"act": "accept"}, {"act": None}, {"act": ["pend"]}, {"autosign_grains": None},
     {"autosign_grains": "join_proof"}, {"autosign_grains": {}},
     {"autosign_grains": ["join_proof"]}, {"autosign_grains": {"other": BIG}}],
)  # fmt: skip
def test_what_is_none_of_a_joining_machine_is_nothing(change: dict[str, Any]) -> None:
    assert hints.request({**GOOD, **change}) is None
    assert hints.request({}) is None


@pytest.mark.parametrize(
    ("change", "what"),
    [({"id": bad}, "id")
     for bad in (None, 7, ["sync-2"], "*", "a*", "../a", "a\n", "{{ a }}", BIG, "")]
    + [({"pub": bad}, "public key") for bad in (None, b"x", BIG, "", "x", PUBLIC + BIG)]
    + [({"autosign_grains": {"join_proof": bad}}, "proof")
       for bad in (None, 7, {"a": 1}, "", "A" * 64, PROOF + "\n", PROOF + "a", BIG)],
)  # fmt: skip
def test_what_has_not_the_form_is_named_and_dropped(change: dict[str, Any], what: str) -> None:
    assert hints.request({**GOOD, **change}) == f"its {what} has not the form of one"


def test_the_log_has_each_reason_once_and_a_flood_a_bounded_part(lines: list[str]) -> None:
    now = [0.0]
    refusals = Refusals(lambda: now[0])
    for number in range(1000):
        refusals.write(f"sync-{number}", "it is not invited")
    assert len(lines) == hints.LINES
    assert lines[0] == "join: 'sync-0' is refused: it is not invited"
    now[0] = 61.0
    refusals.write("x\ny" + BIG, "its id has not the form of one")
    assert lines[-2] == "join: 940 more lines like the next were not written"
    assert (len(lines[-1]) < 130, "\n" in lines[-1]) == (True, False)
    refusals.write({"a": BIG}, "its id has not the form of one")
    assert lines[-1] == "join: 'dict' is refused: its id has not the form of one"


def test_what_was_handed_on_is_not_again_for_seconds_and_so_many_at_a_time() -> None:
    now = [0.0]
    recent = Recent(most=3, of_one=2, clock=lambda: now[0])
    assert [recent.verdict("x", what) for what in "aabc"] == ["new", "again", "new", "many"]
    assert [recent.verdict("y", what) for what in "abcb"] == ["new", "many", "many", "many"]
    now[0] = hints.AGAIN_SECONDS
    assert [recent.verdict("x", what) for what in "caab"] == ["new", "new", "again", "many"]
    assert len(recent._at) == 2


class House:
    """A tree with an invite for sync-2, and a member sync-7."""

    def __init__(self, tmp_path: Any) -> None:
        self.invite = invites.fresh("sync-2", 1, 60, 1e12)
        member: dict[str, Any] = {"sync-7": {}}
        self.store = Records(
            invites=invites.rows({"sync-2": self.invite}), registry=member, **{lock.RECORD: {}}
        )
        self.records = tmp_path


@pytest.fixture
def house(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> House:
    made = House(tmp_path)
    monkeypatch.setattr(hints, "_house", lambda opts: made)
    monkeypatch.setattr(hints, "_key", lambda house: "k")
    monkeypatch.setattr(hints, "_recent", Recent())
    monkeypatch.setattr(hints, "_strange_starts", Refusals())
    return made


def test_only_a_right_proof_becomes_a_runner_job(house: House) -> None:
    secret = invites.secret_of(house.invite, "k")
    right = join_machine.proof_of(secret, "sync-2", PUBLIC)
    data = {**GOOD, "autosign_grains": {"join_proof": right, "other": BIG}, "more": BIG}
    assert hints.auth({}, GOOD) == {}
    assert hints.auth({}, {**data, "id": "sync-3"}) == {}
    reaction = hints.auth({}, data)
    args = [{"minion": "sync-2"}, {"public_key": PUBLIC}, {"proof": right}]
    assert reaction == {"saltworks-admit": {"runner.join.admit": [{"args": args}]}}
    assert hints.auth({}, data) == {}, "once in some seconds"


def test_a_crowd_with_right_proofs_is_let_in_some_at_a_time(
    house: House, monkeypatch: pytest.MonkeyPatch, lines: list[str]
) -> None:
    monkeypatch.setattr(hints, "_recent", Recent(most=0))
    proof = join_machine.proof_of(invites.secret_of(house.invite, "k"), "sync-2", PUBLIC)
    assert hints.auth({}, {**GOOD, "autosign_grains": {"join_proof": proof}}) == {}
    assert "'sync-2' waits: too many come at once" in lines[0]


def test_a_start_pokes_for_a_member_alone_and_only_when_no_pass_is_due(
    house: House, lines: list[str]
) -> None:
    poke: dict[str, Any] = {"saltworks-poke": {"runner.reconcile.poke": []}}
    opts = {"pki_dir": str(house.records)}
    (house.records / "minions").mkdir()
    (house.records / "minions/legacy").touch()
    assert hints.start(opts, {"id": "sync-7", "data": BIG}) == poke
    assert hints.start(opts, {"id": "legacy"}) == {}
    assert lines == [], "it is what it says, and no member"
    for minion in ("sync-2", "*", "{{ a }}", "../legacy", None, ["sync-7"], BIG):
        assert hints.start(opts, {"id": minion}) == {}
    assert len(lines) == 7, "one line says why"
    assert lines[0].endswith("'sync-2' is refused: it is said to start, and no key is accepted")
    assert lines[3].endswith("the id in its start event has not the form of one")
    (house.records / "reconcile.wanted").touch()
    assert hints.start(opts, {"id": "sync-7"}) == {}
