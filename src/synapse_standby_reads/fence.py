"""What is asked of a standby around one interaction, and when its answer may be believed.

The barrier: the standby has replayed all that was flushed on the primary when the interaction
began. It is checked in a transaction of its own, as a snapshot of REPEATABLE READ is older than
its first statement.

The fence: a commit is in the WAL before the primary shows it, so a standby may show it first, and
a read after that on the primary would go backwards. So the standby names the transactions that it
may have shown and that the primary had not finished when it was asked: *suspects*. Each must have
finished there before anybody learns what was read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

#: SQLSTATEs of our own: another timeline or no standby; late; too much to fence.
TIMELINE, LATE, AHEAD = "SR001", "SR002", "SR003"

#: So many transactions between primary and standby are looked through.
MOST_SUSPECTS = 1000

_MARK = "synapse_standby_reads suspects:"
_ANSWER = re.compile(rf"{_MARK}((?:\d+,?)*);")


class Position(NamedTuple):
    """Where the primary is: what is visible or acknowledged there has been flushed up to ``lsn``.

    :param lsn: bytes of WAL.
    :param timeline: LSNs of different ones are not comparable.
    :param xmin: all transactions below have finished.
    :param xmax: none from here on has finished.
    :param running: those between that have not finished, without subtransactions.
    """

    lsn: int
    timeline: int
    xmin: int
    xmax: int
    running: tuple[int, ...]

    def finished(self, xid: int) -> bool:
        return xid < self.xmin or (xid < self.xmax and xid not in self.running)


def position(lsn: str, timeline: int, snapshot: str) -> Position:
    """A position out of the primary's answer.

    :param lsn: as a ``pg_lsn`` is written.
    :param snapshot: as ``pg_current_snapshot()`` is.
    """
    high, low = lsn.split("/")
    xmin, xmax, running = snapshot.split(":")
    xids = tuple(int(word) for word in running.split(",") if word)
    at = (int(high, 16) << 32) + int(low, 16)
    return Position(at, timeline, int(xmin), int(xmax), xids)


def wait_sql(at: Position, wait_ms: int) -> str:
    """The barrier: returns once the standby is there.

    It raises TIMELINE or LATE. The standby publishes a replay position after the record's redo,
    so who begins after this sees all of it.
    """
    return (
        "BEGIN ISOLATION LEVEL READ COMMITTED;DO $$DECLARE t timestamptz;BEGIN "
        "IF NOT pg_is_in_recovery() OR (SELECT received_tli FROM pg_stat_wal_receiver)"
        f" IS DISTINCT FROM {at.timeline} THEN RAISE EXCEPTION USING ERRCODE='{TIMELINE}',"
        "MESSAGE='synapse_standby_reads: not a standby on the timeline of the primary';END IF;"
        f"WHILE pg_last_wal_replay_lsn()-'0/0'<{at.lsn} LOOP "
        f"t:=coalesce(t,clock_timestamp()+{wait_ms}*interval '1 ms');"
        f"IF clock_timestamp()>t THEN RAISE EXCEPTION USING ERRCODE='{LATE}',"
        f"MESSAGE='synapse_standby_reads: not there within {wait_ms} ms';END IF;"
        "PERFORM pg_sleep(0.0003);END LOOP;END$$;COMMIT;"
    )


def begin_sql(at: Position) -> str:
    """The transaction to read in, and its suspects, as a notice.

    Their status is asked after the snapshot was taken: what had not committed then is not in it.
    Ids from ``xmax`` on count as well as the running ones.
    """
    running = ",".join(map(str, at.running))
    return (
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;DO $$DECLARE s bigint[];"
        "m bigint:=pg_snapshot_xmax(pg_current_snapshot())::text::bigint;BEGIN "
        f"IF NOT pg_is_in_recovery() THEN RAISE EXCEPTION USING ERRCODE='{TIMELINE}',"
        "MESSAGE='synapse_standby_reads: not a standby';END IF;"
        f"IF m-{at.xmax}>{MOST_SUSPECTS} THEN RAISE EXCEPTION USING ERRCODE='{AHEAD}',"
        "MESSAGE='synapse_standby_reads: too far ahead of the primary';END IF;"
        f"IF m>{at.xmin} THEN s:=ARRAY(SELECT x FROM"
        f" (SELECT unnest('{{{running}}}'::bigint[]) UNION ALL"
        f" SELECT generate_series({at.xmax},m-1)) c(x) WHERE x<m AND"
        " pg_xact_status(x::text::xid8)='committed');END IF;"
        f"RAISE NOTICE '{_MARK}%;',coalesce(array_to_string(s,','),'');END$$;"
    )


def suspects(notices: Iterable[str]) -> tuple[int, ...] | None:
    """The suspects that the standby has named; None if it has not said."""
    for notice in notices:
        if found := _ANSWER.search(notice):
            return tuple(int(word) for word in found[1].split(",") if word)
    return None


def unfinished(xids: Sequence[int], later: Position) -> list[int]:
    """Those that the primary had not finished at a later position."""
    return [xid for xid in xids if not later.finished(xid)]
