"""A rollback of M3.database that fails after the old server was promoted, on real servers.

People go on with the new server. The old one is fenced at once, or by the next run; it is copied
again, and then goes back as ever. Or it is given up as it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from saltworks.parts.database import logical, standby

from tests.process import postgres, synapse_tables, test_pglogical, test_pgstandby
from tests.process.pg_pair import ROLE
from tests.process.test_pglogical import Pair as Rows
from tests.process.test_pgstandby import Pair as Files
from tests.render.stages import MAP

Json = dict[str, Any]

#: Of the old server's own: no copy may take it away.
OWN = "ALTER SYSTEM SET work_mem = '7MB'; SELECT pg_reload_conf();"


def following(pair: Files | Rows, test: bool = False) -> Json:
    """The state of the old machine's highstate, and of a rollback before its window."""
    module: Any = postgres.load(postgres.STATES / "pgstandby.py")
    module.__salt__, module.__opts__ = pair.salt, {"test": test}
    words = ("follower", pair.way(pair.new), "synapse", pair.old, isinstance(pair, Rows))
    done: Json = module.following(*words)
    return done


def verdict(pair: Files | Rows) -> tuple[bool, str]:
    """What the verdict says of the old server; one that finalize asks for as well."""
    way, route = ("pglogical", logical) if isinstance(pair, Rows) else ("pgstandby", standby)
    told: Json = {"old content": {}, "new content": {}, "followed": {"followed": False, "why": ""}}
    where = (pair.old, "synapse") if isinstance(pair, Rows) else (pair.old,)
    told["old"] = pair.call(f"{way}.status", *where)
    check = route.checks(MAP, told)[0]
    return check.ok, check.detail


def retired(pair: Files | Rows) -> None:
    """What finalize does on the old machine, but for systemd's part."""
    pair.salt["pgcluster.others"] = lambda at: [{"status": "online"}]
    pair.call("pgserver.retire", pair.old)
    assert pair.call("pgcluster.condition", pair.old["data"]) == "gone"
    assert pair.call("pgserver.retire", pair.old) == []


class TestFiles:
    """The old server is of the same major version: a standby."""

    @pytest.fixture
    def pair(self, salt: Json) -> Iterator[Files]:
        """After the milestone: the old one follows."""
        with test_pgstandby.paired(salt) as made:
            postgres.psql(made.old, OWN)
            made.copy()
            made.switch(made.old, made.new)
            made.call("pgcontent.measure", made.new, "synapse")
            assert following(made)["result"] is True
            yield made

    def promoted(self, pair: Files, dies: str = "") -> None:
        """A rollback's window as far as the old one's promotion; that dies at a step."""
        pair.say(pair.new, 200)
        whole = pair.salt.get(dies)

        def die(*args: Any, **kwargs: Any) -> Any:
            pair.salt[dies] = whole
            raise CommandExecutionError("killed")

        fenced = pair.call("pgstandby.fence", pair.new, "synapse")
        if not dies:
            pair.call("pgstandby.promote", pair.old, "synapse", fenced, False)
            return
        pair.salt[dies] = die
        with pytest.raises(CommandExecutionError, match="killed"):
            pair.call("pgstandby.promote", pair.old, "synapse", fenced, False)

    def goes_back_as_ever(self, pair: Files) -> None:
        assert pair.events(pair.new) == 22
        for at, is_standby in ((pair.new, False), (pair.old, True)):
            pair.call("pgstandby.ready", at, is_standby)
        assert pair.switch(pair.new, pair.old, followed=False)[1]["changed"]
        assert pair.events(pair.old) == 22
        pair.say(pair.old, 300)
        assert postgres.psql(pair.old, "SHOW work_mem") == "7MB"
        assert "primary_conninfo" not in postgres.as_user(
            pair.old, "cat", f"{pair.old['data']}/postgresql.auto.conf"
        )

    @pytest.mark.parametrize("dies", ["", "pgserver.configure", "pgcontent.brief"])
    def test_it_is_fenced_at_once_copied_again_and_goes_back(self, pair: Files, dies: str) -> None:
        known = pair.call("pgcontent.measured", pair.new)
        self.promoted(pair, dies)
        # What the failing rollback's own way back does, in this order.
        said = pair.call("pgstandby.stand_down", pair.old, taken_back=True)
        assert "is fenced again" in said
        assert "orch.m3.database or its rollback" in said
        assert pair.call("pgstandby.stand_down", pair.old, taken_back=True) == ""
        assert pair.call("pgstandby.unfence", pair.new) is True
        pair.say(pair.new, 201)
        # Whoever starts it, it takes no write.
        pair.call("pgserver.start", pair.old, 20)
        with pytest.raises(subprocess.CalledProcessError) as refused:
            pair.say(pair.old, 666)
        assert "read-only transaction" in refused.value.stderr
        with pytest.raises(CommandExecutionError, match=r"has parted .* copies it again"):
            pair.call("pgstandby.follow", pair.old, pair.way(pair.new))
        with pytest.raises(CommandExecutionError, match="has followed another cluster"):
            pair.call("pgstandby.unfence", pair.old)
        plan = following(pair, test=True)
        assert (plan["result"], "copy again" in plan["comment"]) == (None, True)
        done = following(pair)
        assert (done["result"], list(done["changes"])) == (True, ["follows"])
        assert following(pair)["changes"] == {}
        # What was compared at the switch still holds on both sides.
        assert known == pair.call("pgcontent.measured", pair.new)
        assert known["tables"] == pair.call("pgcontent.measured", pair.old)["tables"]
        self.goes_back_as_ever(pair)

    def test_one_that_was_away_is_fenced_by_the_next_run_before_anything_else(
        self, pair: Files
    ) -> None:
        self.promoted(pair)
        # A highstate from before the window comes late: the other one does not serve yet.
        late = following(pair)
        assert (late["result"], late["changes"]) == (False, {})
        # Nor does a word by hand throw away what serves, for all that is known here.
        assert pair.call("pgstandby.stand_down", pair.old, discard=True) == ""
        pair.say(pair.old, 666)
        pair.call("pgstandby.unfence", pair.new)
        pair.say(pair.new, 201)
        assert not verdict(pair)[0]
        copy_again = pair.salt["pgstandby.copy_again"]
        pair.salt["pgstandby.copy_again"] = lambda *args: self.refused(pair)
        failed = following(pair)
        assert (failed["result"], list(failed["changes"])) == (False, ["fenced"])
        pair.salt["pgstandby.copy_again"] = copy_again
        assert following(pair)["result"] is True
        self.goes_back_as_ever(pair)

    @staticmethod
    def refused(pair: Files) -> None:
        row = pair.call("pgstandby.status", pair.old)
        assert (row["condition"], row["fenced"], row["stands"]) == ("gone", True, "parted")
        raise CommandExecutionError("no room")

    def test_a_fence_that_died_half_way_is_seen_and_done(self, pair: Files) -> None:
        self.promoted(pair)
        stop = pair.salt["pgserver.stop"]

        def die(*args: Any) -> None:
            pair.salt["pgserver.stop"] = stop
            raise CommandExecutionError("killed")

        for name in ("pgserver.write", "pgserver.stop"):
            whole = pair.salt[name]
            pair.salt[name] = die
            with pytest.raises(CommandExecutionError, match="killed"):
                pair.call("pgstandby.stand_down", pair.old, taken_back=True)
            pair.salt[name] = whole
            assert pair.call("pgstandby.status", pair.old)["stands"] == "loose"
        assert "is fenced again" in pair.call("pgstandby.stand_down", pair.old, taken_back=True)
        assert pair.call("pgstandby.status", pair.old)["stands"] == "parted"

    def test_a_promotion_that_never_began_leaves_a_follower(self, pair: Files) -> None:
        self.promoted(pair, dies="pgserver.sql")
        pair.call("pgstandby.unfence", pair.new)
        assert pair.call("pgstandby.stand_down", pair.old, taken_back=True) == ""
        assert pair.call("pgstandby.status", pair.old)["stands"] == "follower"
        assert following(pair)["result"] is True
        pair.say(pair.new, 201)
        self.goes_back_as_ever(pair)

    def promotion_pends(self, pair: Files) -> int:
        """As :meth:`promoted`, but PostgreSQL does not come to it in time; pid of who is stuck."""
        sql = pair.salt["pgserver.sql"]
        # It answers false after one second as after 30.
        pair.salt["pgserver.sql"] = lambda at, script, *more: sql(
            at, script.replace("pg_promote(true, 30)", "pg_promote(true, 1)"), *more
        )
        pair.say(pair.new, 200)
        fenced = pair.call("pgstandby.fence", pair.new, "synapse")
        startup = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'startup'"
        pid = int(postgres.psql(pair.old, startup))
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(CommandExecutionError, match=r"did not end within 30 s.*status"):
            pair.call("pgstandby.promote", pair.old, "synapse", fenced, False)
        pair.salt["pgserver.sql"] = sql
        row = pair.call("pgstandby.status", pair.old)
        assert (row["stands"], row["recovery"]) == ("undone", True)
        return pid

    def test_a_promotion_that_still_pends_is_ended(self, pair: Files) -> None:
        pid = self.promotion_pends(pair)
        said = pair.call("pgstandby.stand_down", pair.old, taken_back=True)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        time.sleep(2)
        row = pair.call("pgstandby.status", pair.old)
        assert (row["condition"], row["fenced"], row["stands"]) == ("gone", True, "follower")
        assert "is fenced as before, and stopped" in said
        pair.call("pgstandby.unfence", pair.new)
        pair.say(pair.new, 201)
        assert following(pair)["result"] is True
        self.goes_back_as_ever(pair)

    def test_a_promotion_that_ends_meanwhile_is_fenced_again(self, pair: Files) -> None:
        pid = self.promotion_pends(pair)
        stop = pair.salt["pgserver.stop"]

        def late(at: Json, *args: Any) -> None:
            pair.salt["pgserver.stop"] = stop
            os.kill(pid, signal.SIGCONT)
            until = time.monotonic() + 20
            while pair.call("pgstandby.status", at)["stands"] != "promoted":
                assert time.monotonic() < until
                time.sleep(0.1)
            stop(at, *args)

        pair.salt["pgserver.stop"] = late
        said = pair.call("pgstandby.stand_down", pair.old, taken_back=True)
        assert "was promoted, does not serve, and is fenced again" in said
        row = pair.call("pgstandby.status", pair.old)
        assert (row["condition"], row["fenced"], row["stands"]) == ("gone", True, "parted")
        pair.call("pgstandby.unfence", pair.new)
        pair.say(pair.new, 201)
        assert following(pair)["result"] is True
        self.goes_back_as_ever(pair)

    def test_one_that_serves_is_not_stopped_by_a_hand_that_gives_no_reason(
        self, pair: Files
    ) -> None:
        for reasons in ({}, {"discard": True, "taken_back": True}):
            with pytest.raises(CommandExecutionError, match=r"upstream.*discard=True.*taken_back"):
                pair.call("pgstandby.stand_down", pair.new, **reasons)
        assert pair.call("pgstandby.stand_down", pair.new, discard=True) == ""
        with pytest.raises(CommandExecutionError, match="is a standby itself"):
            pair.call("pgstandby.stand_down", pair.new, pair.way(pair.old))
        row = pair.call("pgstandby.status", pair.new)
        assert (row["condition"], row["fenced"], row["stands"]) == ("ready", False, "promoted")
        pair.say(pair.new, 201)

    def test_a_copy_that_was_cut_is_made_anew(self, pair: Files) -> None:
        rows = "SELECT repeat('x', 900) t FROM generate_series(1, 90000)"
        pair.sql(pair.new, f"CREATE TABLE big AS {rows}")
        # On a disk of its own, as some have it.
        wal, other = f"{pair.old['data']}/pg_wal", f"{pair.old['socket']}/wal"
        pair.call("pgserver.stop", pair.old, "fast", 20)
        postgres.as_user(pair.old, "sh", "-c", f"mv {wal} {other} && ln -s {other} {wal}")
        pair.call("pgstandby.awake", pair.old)
        assert pair.call("pgstandby.near", pair.old)
        self.promoted(pair)
        pair.call("pgstandby.stand_down", pair.old, taken_back=True)
        pair.call("pgstandby.unfence", pair.new)
        pair.salt["pgcluster.run"] = test_pgstandby._cut_in_the_middle(pair.salt["pgcluster.run"])
        failed = following(pair)
        assert failed["result"] is False
        assert "there is no way back yet; mend that" in failed["comment"]
        pair.salt["pgcluster.run"] = pair.salt["pgcluster.run"].whole
        pair.say(pair.new, 201)
        assert following(pair)["result"] is True
        assert os.path.realpath(wal) == other
        self.goes_back_as_ever(pair)

    @pytest.mark.parametrize("cut", [False, True])
    def test_it_may_be_given_up_as_it_is(self, pair: Files, cut: bool) -> None:
        self.promoted(pair)
        pair.call("pgstandby.stand_down", pair.old, taken_back=True)
        pair.call("pgstandby.unfence", pair.new)
        if cut:
            # A new copy that came to nothing leaves an empty folder.
            postgres.as_user(pair.old, "sh", "-c", f"rm -r {pair.old['data']}/*")
            assert not verdict(pair)[0], "not fenced by now: the next run sees to it"
            pair.call("pgstandby.stand_down", pair.old, taken_back=True)
        good, words = verdict(pair)
        assert good
        assert "does not follow since a rollback failed" in words
        retired(pair)
        assert pair.call("pgadmit.slots", pair.new, []) == ["saltworks_standby"]
        pair.say(pair.new, 201)

    def test_a_fence_that_was_taken_away_by_hand_is_not_our_decision(self, pair: Files) -> None:
        pair.call("pgserver.stop", pair.old, "fast", 20)
        postgres.as_user(pair.old, "rm", f"{pair.old['data']}/standby.signal")
        pair.call("pgserver.start", pair.old, 20)
        pair.say(pair.old, 666)
        said = following(pair)
        assert said["result"] is False
        assert "stand_down with discard=True" in said["comment"]
        assert pair.call("pgstandby.stand_down", pair.old, taken_back=True) == ""
        assert pair.events(pair.old) == 21
        said = pair.call("pgstandby.stand_down", pair.old, discard=True)
        assert "is fenced. It cannot follow until it is copied again" in said
        assert following(pair)["result"] is True
        assert pair.events(pair.old) == 20

    def test_one_that_was_away_for_too_long_is_copied_again_by_hand(self, pair: Files) -> None:
        pair.call("pgserver.stop", pair.old, "fast", 20)
        slot = "SELECT pg_drop_replication_slot('saltworks_standby')"
        postgres.psql(pair.new, slot)
        for number in (200, 201):
            pair.say(pair.new, number)
            postgres.psql(pair.new, "SELECT pg_switch_wal(); CHECKPOINT;")
        with pytest.raises(CommandExecutionError, match="stand_down with discard=True"):
            pair.call("pgstandby.follow", pair.old, pair.way(pair.new), 2)
        assert pair.call("pgstandby.stand_down", pair.old, taken_back=True) == ""
        assert "is fenced" in pair.call("pgstandby.stand_down", pair.old, discard=True)
        assert following(pair)["result"] is True
        self.goes_back_as_ever(pair)


class TestRows:
    """The old server is of an older major version: its rows follow."""

    @pytest.fixture(params=[13, 14])
    def pair(self, salt: Json, request: pytest.FixtureRequest) -> Iterator[Rows]:
        """After the milestone: the old one follows."""
        with test_pglogical.paired(salt, request.param) as made:
            made.publish()
            made.copy()
            made.switch(made.old, made.new)
            made.call("pgcontent.measure", made.new, "synapse")
            assert following(made)["result"] is True
            yield made

    def took_over(self, pair: Rows) -> None:
        """A rollback's window as far as the old one's take-over, and a Synapse that wrote."""
        pair.say(pair.new, 200)
        assert pair.switch(pair.new, pair.old, followed=False)[1]["changed"]
        pair.as_synapse(pair.old, synapse_tables.event(666) + "SELECT 1")

    def test_it_is_fenced_at_once_copied_again_and_goes_back(self, pair: Rows) -> None:
        known = pair.call("pgcontent.measured", pair.new)
        for reasons in ({}, {"discard": True, "taken_back": True}):
            with pytest.raises(CommandExecutionError, match=r"upstream.*discard=True.*taken_back"):
                pair.call("pglogical.stand_down", pair.new, "synapse", **reasons)
        row = pair.call("pglogical.status", pair.new, "synapse")
        assert (row["fenced"], row["stands"]) == (False, "promoted")
        self.took_over(pair)
        said = pair.call("pglogical.stand_down", pair.old, "synapse", taken_back=True)
        assert "is fenced again" in said
        assert pair.call("pglogical.stand_down", pair.old, "synapse", taken_back=True) == ""
        assert pair.call("pglogical.unfence", pair.new, "synapse") is True
        pair.as_synapse(pair.new, synapse_tables.event(201) + "SELECT 1")
        pair.call("pgserver.stop", pair.old, "fast", 20)
        pair.call("pgserver.start", pair.old, 20)
        with pytest.raises(CommandExecutionError, match="reject"):
            pair.as_synapse(pair.old, "SELECT 1")
        with pytest.raises(CommandExecutionError, match=r"has parted .* copies it again"):
            pair.call("pglogical.follow", pair.old, "synapse", pair.way(pair.new))
        done = following(pair)
        assert (done["result"], list(done["changes"])) == (True, ["follows"])
        assert following(pair)["changes"] == {}
        pair.wait_equal()
        assert known == pair.call("pgcontent.measured", pair.new)
        assert known["tables"] == pair.call("pgcontent.measured", pair.old)["tables"]
        assert pair.call("pglogical.followed", pair.new, "synapse")["followed"]
        pair.sql(pair.new, "SELECT nextval('numbers') FROM generate_series(1, 3)")
        pair.switch(pair.new, pair.old, followed=False)
        assert pair.content(pair.old) == pair.content(pair.new)
        assert pair.sql(pair.old, "SELECT max(stream_ordering) FROM events") == "201"
        assert pair.as_synapse(pair.old, "SELECT nextval('numbers')") == "[11]"

    def test_one_that_was_away_is_fenced_by_the_next_run_or_given_up(self, pair: Rows) -> None:
        self.took_over(pair)
        late = following(pair)
        assert (late["result"], late["changes"]) == (False, {})
        pair.as_synapse(pair.old, "SELECT 1")
        pair.call("pglogical.unfence", pair.new, "synapse")
        assert not verdict(pair)[0]
        # A table that takes no row: seen, though before 15 no server counts such errors.
        pair.sql(pair.old, "ALTER TABLE inbox ADD CONSTRAINT never CHECK (false) NOT VALID")
        module: Any = postgres.load(postgres.MODULES / "saltworks_pgsubscribe.py")
        module.__salt__, module.LOOK_SECONDS, module.STALL_SECONDS = pair.salt, 0.5, 2
        refill, pair.salt["pgsubscribe.refill"] = pair.salt["pgsubscribe.refill"], module.refill
        failed = following(pair)
        assert (failed["result"], list(failed["changes"])) == (False, ["fenced"])
        assert "nothing has arrived" in failed["comment"]
        assert "there is no way back yet" in failed["comment"]
        pair.salt["pgsubscribe.refill"] = refill
        pair.sql(pair.new, "ALTER TABLE users ADD COLUMN locked boolean")
        failed = following(pair)
        assert (failed["result"], list(failed["changes"])) == (False, [])
        assert "other columns by now" in failed["comment"]
        assert "orch.m3.database.finalize" in failed["comment"]
        with pytest.raises(CommandExecutionError, match="reject"):
            pair.as_synapse(pair.old, "SELECT 1")
        good, words = verdict(pair)
        assert good
        assert "does not follow since a rollback failed" in words
        retired(pair)
        assert pair.call("pgadmit.slots", pair.new, []) == ["saltworks_back"]
        assert f"rights of {ROLE}" in pair.call("pgpublish.unpublish", pair.new, "synapse", ROLE)
