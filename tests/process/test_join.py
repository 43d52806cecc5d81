"""Admission on a real master: who is let in, and that nothing else opens its door.

The machines are strangers that speak Salt's protocol, and an accepted minion that lies. No
orchestration runs here: there is no Redis in the placement, so nobody is brought into service.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from saltworks import invites, lock, passes, registry, user_data
from saltworks.keys import Keys

from tests.lab.driver import wait_for
from tests.process import house as houses
from tests.process.house import MINION, PATIENCE, SECRETS, House, sqlite_map
from tests.process.strangers import Liar, Stranger, Wire, liar, wire
from tests.unit.house import held, living

OWN = {name: f"<{name}>" for name in SECRETS}

#: How long nothing must have happened before it is believed that nothing will, in seconds.
QUIET = 3.0


class Site:
    """A house with workers in its map, a wire to its master and a minion that lies."""

    def __init__(self, house: House, outside: Wire, inside: Liar) -> None:
        self.house, self.outside, self.inside = house, outside, inside
        self.log = Path(house.master.config["log_file"])
        self._read = self.log.stat().st_size
        self.records = house.records

    def invite(self, pattern: str = "sync-2", *words: str) -> str:
        """Invite; the secret, out of the user-data."""
        made = self.house.run("join.invite", pattern, "master=127.0.0.1", *words)
        assert made.code == 0, made.text
        text = Path(made.data.rpartition(" ")[2]).read_text()
        files = {row["path"]: row["content"] for row in yaml.safe_load(text)["write_files"]}
        secret: str = json.loads(files[user_data.TOLD])["secret"]
        assert secret not in made.text
        return secret

    def standing(self) -> dict[str, Any]:
        """What nobody outside may change: keys, members, uses of invites."""
        keys = Keys(self.house.master.config)
        names = ("sync-2", "sync-3", "sync-7", MINION)
        return {
            "keys": keys.fingerprints(names),
            "members": self.house.recorded(registry.RECORD),
            "uses": {
                name: row["used"] for name, row in self.house.recorded(invites.RECORD).items()
            },
        }

    def said(self) -> list[str]:
        """The log's lines on who was let in or refused, since the last look."""
        with self.log.open() as lines:
            lines.seek(self._read)
            text = lines.read()
            self._read = lines.tell()
        return [line for line in text.splitlines() if re.search(r"\bjoin: |reconcile: ", line)]

    def admitted(self, minion: str, by: Stranger) -> bool:
        own = invites.fingerprint(by.public_key)
        row = self.house.recorded(registry.RECORD).get(minion, {})
        return Keys(self.house.master.config).fingerprints([minion]) == {minion: own} == {
            minion: row.get("key")
        }


@pytest.fixture(scope="module")
def running(salt_factories: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with houses.house(tmp_path_factory.mktemp("join"), salt_factories, joins=True) as house:
        yield house


@pytest.fixture
def site(running: House, tmp_path: Path) -> Iterator[Site]:
    """A map with a worker and a pool; no invite, no member, no key but the minion's."""
    running.forget()
    keys = Path(running.master.config["pki_dir"])
    for folder in ("minions", "minions_pre", "minions_rejected", "minions_denied"):
        for path in (keys / folder).glob("*"):
            if path.name != MINION:
                path.unlink()
    running.declare(worker_map(running.found))
    running.vault.put(OWN)
    running.record("placement", {"synapse": MINION, "front": MINION, "managed": False})
    with wire(running, tmp_path) as outside, liar(running) as inside:
        yield Site(running, outside, inside)


def worker_map(found: Path) -> dict[str, Any]:
    cmap = sqlite_map(found)
    more = {
        "redis": {"role": "redis", "address": "198.18.0.16"},
        "sync-2": {"role": "worker", "kind": "sync", "address": "198.19.0.2"},
    }
    return {
        **cmap,
        "machines": {**cmap["machines"], **more},
        "workers": {"sync": {"pool": "sync-*"}},
        "worker_networks": ["198.19.0.0/16"],
    }


def until(condition: Callable[[], Any], what: str) -> None:
    wait_for(condition, PATIENCE, what)


def keeps_out(site: Site, act: Callable[[], None], lines: Mapping[str, int]) -> None:
    """Something is done to the master: nothing changes, and the log says why, a line for each.

    :param lines: patterns, and how often each is in the log.
    """
    before = site.standing()
    site.said()
    act()
    heard: list[str] = []

    def counts() -> dict[str, int]:
        heard.extend(site.said())
        return {why: sum(bool(re.search(why, line)) for line in heard) for why in lines}

    until(lambda: all(counts()[why] >= wanted for why, wanted in lines.items()), f"lines {lines}")
    time.sleep(QUIET)
    assert counts() == lines, heard
    assert site.standing() == before, heard


def test_an_invited_machine_is_admitted_and_its_invite_is_spent(site: Site) -> None:
    machine = Stranger.fresh()
    secret = site.invite()
    shown = machine.proof(secret, "sync-2")
    assert (site.house.records / "user-data" / "sync-2.yaml").stat().st_mode & 0o777 == 0o600
    site.outside.asks(machine, "sync-2", shown)
    until(lambda: site.admitted("sync-2", machine), "sync-2 is admitted")
    row = site.house.recorded(registry.RECORD)["sync-2"]
    assert (row["kind"], row["state"], row["generation"]) == ("sync", "joining", 1)
    assert row["address"] == "198.19.0.2", "the map's, not what the machine says"
    until(
        lambda: not (site.house.records / "user-data" / "sync-2.yaml").exists(),
        "the pass after it takes the user-data away",
    )
    assert site.house.run("join.list").data[0]["state"] == "used up"
    # Another machine with the same secret, and the proof as it was overheard.
    other = Stranger.fresh()

    def others() -> None:
        site.outside.asks(other, "sync-2", other.proof(secret, "sync-2"))
        site.outside.asks(other, "sync-2", shown)

    used = "'sync-2' is refused: its invite was used by another key"
    keeps_out(site, others, {used: 1, "'sync-2' is refused: its proof is not of this": 1})
    # The machine itself may say it again.
    before = site.standing()
    site.outside.asks(machine, "sync-2", shown)
    time.sleep(QUIET)
    assert site.standing() == before


def test_only_who_proves_it_comes_in(site: Site) -> None:
    secret = site.invite()
    machine = Stranger.fresh()
    good = machine.proof(secret, "sync-2")

    def wrong() -> None:
        site.outside.asks(machine, "sync-2", machine.proof("0" * 64, "sync-2"))
        site.outside.asks(machine, "sync-2", machine.proof(secret, "sync-3"))
        site.outside.asks(machine, "sync-3", machine.proof(secret, "sync-3"))
        for proof in ("f" * 63, {"x": 1}, "F" * 64, 7):
            site.outside.asks(machine, "sync-2", proof)

    keeps_out(
        site,
        wrong,
        {
            "'sync-2' is refused: its proof is not of this invite, id and key": 2,
            "'sync-3' is refused: it is not invited": 1,
            "'sync-2' is refused: its proof has not the form of one": 4,
        },
    )
    # After all that the right one is still let in.
    site.outside.asks(machine, "sync-2", good)
    until(lambda: site.admitted("sync-2", machine), "sync-2 is admitted")


def test_an_invite_that_is_over_lets_nobody_in(site: Site) -> None:
    machine = Stranger.fresh()
    secret = site.invite("sync-2", "ttl=1s")
    time.sleep(1.5)
    proof = machine.proof(secret, "sync-2")
    expired = {"'sync-2' is refused: its invite has expired": 1}
    keeps_out(site, lambda: site.outside.asks(machine, "sync-2", proof), expired)
    secret = site.invite("sync-2")
    assert site.house.run("join.revoke", "sync-2").code == 0
    revoked = machine.proof(secret, "sync-2")
    gone = {"'sync-2' is refused: it is not invited": 1}
    keeps_out(site, lambda: site.outside.asks(machine, "sync-2", revoked), gone)


def test_an_id_that_is_more_than_an_id_gets_nowhere(site: Site) -> None:
    secret = site.invite("sync-*", "uses=5")
    waits, machine = Stranger.fresh(), Stranger.fresh()
    site.outside.asks(waits, "sync-7")
    until(lambda: Keys(site.house.master.config).get("sync-7"), "sync-7 waits")
    ids = (
        "*", "sync-*", "sync-2\nmatch: '*'", "{{ 7 * 7 }}", "{% import os %}", "sync-2; id",
        "SYNC-2",
    )  # fmt: skip

    def asked() -> None:
        for minion in ids:
            site.outside.asks(machine, minion, machine.proof(secret, minion))

    keeps_out(site, asked, {"is refused: its id has not the form of one": len(ids)})


def test_a_path_for_an_id_is_refused_by_salt_itself(site: Site) -> None:
    secret = site.invite("sync-*", "uses=5")
    before = site.standing()
    pki = Path(site.house.master.config["pki_dir"])
    files = {path for path in pki.rglob("*") if path.is_file()}
    for minion in ("../minions/sync-7", "sync-7/../../x", "..", "sync-7\0"):
        machine = Stranger.fresh()
        site.outside.asks(machine, minion, machine.proof(secret, minion))
    time.sleep(QUIET)
    assert site.standing() == before
    assert {path for path in pki.rglob("*") if path.is_file()} == files


def test_a_pattern_binds_each_use_to_the_key_that_used_it(site: Site) -> None:
    secret = site.invite("sync-*", "uses=2")
    first, second, third = (Stranger.fresh() for _ in range(3))
    site.outside.asks(first, "sync-3", first.proof(secret, "sync-3"))
    site.outside.asks(second, "sync-7", second.proof(secret, "sync-7"))
    until(lambda: site.admitted("sync-3", first), "sync-3 is admitted")
    until(lambda: site.admitted("sync-7", second), "sync-7 is admitted")

    def more() -> None:
        for minion in ("sync-9", "sync-3"):
            site.outside.asks(third, minion, third.proof(secret, minion))

    keeps_out(
        site,
        more,
        {
            "'sync-9' is refused: the invite sync-\\* is used up": 1,
            "'sync-3' is refused: its invite was used by another key": 1,
        },
    )


def test_who_sits_on_an_invited_id_keeps_nobody_out(site: Site) -> None:
    squatter, machine = Stranger.fresh(), Stranger.fresh()
    site.outside.asks(squatter, "sync-2", "0" * 64)
    until(lambda: Keys(site.house.master.config).get("sync-2"), "somebody else waits")
    secret = site.invite()
    site.outside.asks(machine, "sync-2", machine.proof(secret, "sync-2"))
    until(lambda: site.admitted("sync-2", machine), "the invited machine is admitted")
    assert any("another key waited under its id" in line for line in site.said())


def test_an_accepted_minion_that_lies_changes_nothing(site: Site) -> None:
    secret = site.invite()
    waits, machine = Stranger.fresh(), Stranger.fresh()
    site.outside.asks(waits, "sync-2")
    site.outside.asks(waits, "sync-3")
    until(lambda: Keys(site.house.master.config).get("sync-3"), "they wait")
    forged = {"result": True, "act": "pend", "id": "sync-2", "pub": waits.public_key}
    grains = {"autosign_grains": {"join_proof": waits.proof("guess", "sync-2")}}
    wrong = {"'sync-2' is refused: its proof is not of this invite, id and key": 1}
    keeps_out(site, lambda: site.inside.fires(("salt/auth", {**forged, **grains})), wrong)
    # Of a machine that never asked: the proof is good, but no key of it waits.
    absent = {**forged, "id": "sync-7", "pub": machine.public_key}
    pool = site.invite("sync-*", "uses=3")
    proven = {"autosign_grains": {"join_proof": machine.proof(pool, "sync-7")}}
    missing = {"'sync-7' is refused: .*no key waits under its id": 1}
    keeps_out(site, lambda: site.inside.fires(("salt/auth", {**absent, **proven})), missing)
    events: list[tuple[str, dict[str, Any]]] = [
        ("salt/auth", {**forged, "act": "accept"}),
        ("salt/auth", {"id": ["sync-2"], "act": "pend", "autosign_grains": "x"}),
        ("salt/auth", {"act": "pend", "autosign_grains": {"join_proof": None}}),
        ("salt/minion/sync-2/start", {"id": "sync-2"}),
        ("salt/minion/sync-*/start", {"id": "sync-*"}),
        ("salt/minion/x/start", {"id": "{{ salt['cmd.run']('id') }}"}),
        ("salt/minion/y/start", {"id": {"a": 1}}),
        ("salt/minion/z/start", {"id": "../minions/sync-3"}),
        ("salt/key", {"act": "accept", "id": "sync-3", "result": True}),
        ("salt/run/1/ret", {"fun": "runner.join.admit", "return": True}),
    ]
    starts = {
        "'sync-2' is refused: it is said to start, and no key is accepted": 1,
        "is refused: the id in its start event has not the form of one": 4,
    }
    keeps_out(site, lambda: site.inside.fires(*events), starts)
    # The reactor still works.
    site.outside.asks(machine, "sync-7", machine.proof(pool, "sync-7"))
    until(lambda: site.admitted("sync-7", machine), "sync-7 is admitted")
    assert secret


def test_a_body_of_a_megabyte_is_dropped_and_stops_nobody(site: Site) -> None:
    secret = site.invite()
    machine = Stranger.fresh()
    big = "x" * 1_000_000
    before = site.standing()
    crowd = Stranger.fresh()
    grown = 0.0
    body = {"act": "pend", "id": "sync-2", "pub": big, "autosign_grains": {"join_proof": big}}
    for number in range(50):
        if number == 10:
            # The buffers of this size have been made.
            time.sleep(QUIET)
            grown = memory(site)
        site.inside.fires(("salt/minion/sync-2/start", {"id": "sync-2", "data": big}))
        site.inside.fires(("salt/auth", body))
        site.outside.asks(crowd, "sync-3", big)
    time.sleep(QUIET)
    assert site.standing() == before
    # Since then it was sent twice as much, four to each.
    assert memory(site) - grown < 80, "MB that the master has grown by"
    site.outside.asks(machine, "sync-2", machine.proof(secret, "sync-2"))
    until(lambda: site.admitted("sync-2", machine), "sync-2 is admitted")


def test_a_thousand_keys_that_wait_keep_nobody_waiting(site: Site) -> None:
    secret = site.invite("sync-*", "uses=3")
    crowd, machine = Stranger.fresh(), Stranger.fresh()
    before, grown = site.standing(), memory(site)
    site.said()
    for number in range(1000):
        site.outside.asks(crowd, f"sync-crowd-{number}", "0" * 64)
    pending = Path(site.house.master.config["pki_dir"]) / "minions_pre"
    assert len(list(pending.iterdir())) == 1000
    begun = time.monotonic()
    site.outside.asks(machine, "sync-7", machine.proof(secret, "sync-7"))
    until(lambda: site.admitted("sync-7", machine), "sync-7 is admitted")
    taken = time.monotonic() - begun
    after = site.standing()
    assert set(after["keys"]) - set(before["keys"]) == {"sync-7"}
    refused = [line for line in site.said() if "is refused" in line]
    assert 0 < len(refused) <= 130, "at most 60 lines a minute"
    assert memory(site) - grown < 100, "MB that the master has grown by"
    assert taken < 30


def test_a_worker_gets_no_other_pillar_than_its_own(site: Site) -> None:
    """By the master's own compiler, for ids that are admitted, that wait, that are anything."""
    for minion in ("sync-2", "sync-7", "stranger", "sync-*"):
        pillar = site.house.pillar(minion)
        assert not [name for name, text in OWN.items() if text in str(pillar)], minion
    # The accepted minion asks in its own name, and in another's.
    assert OWN["signing_key"] in site.inside.pillar_of(MINION)
    for minion in ("proxy", "synapse", "sync-2"):
        answer = site.inside.pillar_of(minion)
        assert not [name for name, text in OWN.items() if text in answer], minion


def test_a_storm_costs_two_passes_at_most_and_loses_nothing(site: Site) -> None:
    secret = site.invite("sync-*", "uses=3")
    member, machine, crowd = (Stranger.fresh() for _ in range(3))
    site.outside.asks(member, "sync-7", member.proof(secret, "sync-7"))
    until(lambda: site.admitted("sync-7", member), "sync-7 is admitted")
    until(lambda: idle(site), "the pass after it has ended")
    made, grown = count(site), memory(site)
    begun = time.monotonic()
    for number in range(100):
        site.inside.fires(
            ("salt/minion/sync-7/start", {"id": "sync-7"}),
            (f"salt/minion/sync-{number}/start", {"id": f"sync-{number}"}),
        )
        if number == 60:
            site.outside.asks(machine, "sync-3", machine.proof(secret, "sync-3"))
        site.outside.asks(crowd, f"sync-crowd-{number}", "0" * 64)
        time.sleep(max(0.0, begun + number * 0.02 - time.monotonic()))
    until(lambda: site.admitted("sync-3", machine), "who came in the middle is admitted")
    until(lambda: idle(site), "the passes have ended")
    storm = time.monotonic() - begun
    # Where the processors are busy with other tests two seconds of events take longer to arrive.
    most = max(2, int(storm // passes.SPACING_SECONDS))
    assert made < count(site) <= made + most, f"passes within {storm:.1f} s"
    assert site.house.run("lock.show").data == {"held": False}
    assert memory(site) - grown < 100, "MB that the master has grown by"


def test_while_a_milestone_runs_machines_are_admitted_and_nothing_else_is_done(site: Site) -> None:
    secret = site.invite()
    machine = Stranger.fresh()
    with living() as owner:
        site.house.record(lock.RECORD, held(owner, "milestone m2"))
        site.outside.asks(machine, "sync-2", machine.proof(secret, "sync-2"))
        until(lambda: site.admitted("sync-2", machine), "sync-2 is admitted")
        until(lambda: idle(site), "the pass has ended")
        shown = site.house.run("lock.show").data
        assert (shown["held"], shown["reason"]) == (True, "milestone m2")


def test_what_a_restart_cut_is_ended_by_the_next_start(site: Site) -> None:
    """The use was written down, then the master died: no event says it again."""
    secret = site.invite("sync-*", "uses=3")
    machine, late = Stranger.fresh(), Stranger.fresh()
    site.outside.asks(machine, "sync-7")
    until(lambda: Keys(site.house.master.config).get("sync-7"), "sync-7 waits")
    rows = site.house.recorded(invites.RECORD)
    rows["sync-*"]["used"] = {"sync-7": invites.fingerprint(machine.public_key)}
    site.house.master.terminate()
    site.house.record(invites.RECORD, rows)
    site.house.master.start(start_timeout=PATIENCE)
    until(lambda: site.admitted("sync-7", machine), "sync-7 is admitted after the start")

    # A machine asks until it is heard, as its minion does.
    def asked() -> bool:
        site.outside.asks(late, "sync-3", late.proof(secret, "sync-3"))
        time.sleep(2)
        return site.admitted("sync-3", late)

    until(asked, "sync-3 is admitted")


def test_a_restart_in_the_middle_of_a_storm_loses_nobody(site: Site) -> None:
    secret = site.invite("sync-*", "uses=3")
    member, machine, crowd = (Stranger.fresh() for _ in range(3))
    site.outside.asks(member, "sync-7", member.proof(secret, "sync-7"))
    until(lambda: site.admitted("sync-7", member), "sync-7 is admitted")

    def storm(number: int) -> None:
        site.outside.asks(crowd, f"sync-crowd-{number}", "0" * 64)
        site.outside.asks(machine, "sync-3", machine.proof(secret, "sync-3"))

    for number in range(25):
        site.inside.fires(("salt/minion/sync-7/start", {"id": "sync-7"}))
        storm(number)
    site.house.master.terminate()
    site.house.master.start(start_timeout=PATIENCE)

    def heard() -> bool:
        storm(25)
        return site.admitted("sync-3", machine)

    until(heard, "sync-3 is admitted")
    assert site.admitted("sync-7", member)
    until(lambda: idle(site), "the passes have ended")
    assert site.house.run("lock.show").data == {"held": False}


def count(site: Site) -> int:
    return int(site.house.recorded("passes").get("count", 0))


def idle(site: Site) -> bool:
    """Whether no pass is wanted or made, and one was made."""
    wanted = (site.records / "reconcile.wanted").exists()
    return count(site) > 0 and not wanted and not makers(site)


def makers(site: Site) -> list[int]:
    """Processes that make passes for this master."""
    own = f"--config-dir={site.house.master.config_dir}"
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if own in words and "reconcile.run" in words:
            found.append(process.pid)
    return found


def memory(site: Site) -> float:
    """Resident memory of the master's own processes, in MB."""
    top = psutil.Process(site.house.master.pid)
    total = 0
    for process in [top, *top.children(recursive=True)]:
        try:
            if "reconcile.run" not in process.cmdline():
                total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6
