"""The module's configuration: checked as a whole, and what a connection is made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import Refused

#: Seconds that a connection may take, where Synapse's own arguments do not say.
CONNECT_SECONDS = 2

#: What a dead machine is noticed by, where Synapse's own arguments do not say.
KEEPALIVES: Mapping[str, Any] = {
    "connect_timeout": CONNECT_SECONDS, "tcp_user_timeout": 3000, "keepalives_idle": 5,
    "keepalives_interval": 2, "keepalives_count": 2,
}

#: Of each session on a standby. After a promotion it would take writes, and the fence's answer
#: comes as a notice.
SESSION = (
    "-c default_transaction_read_only=on -c client_min_messages=notice "
    r"-c default_transaction_isolation=repeatable\ read"
)

WORDS = ("refuse", "warn")


@dataclass(frozen=True)
class Config:
    """What a site says under ``config`` of the module.

    :param standbys: what each connection has different from Synapse's own ``database.args``.
    :param standbys_file: JSON with such a list instead, read again when it changes.
    :param only: descriptions of interactions that may go to a standby; none: all that only read.
    :param single_statements: also those that Synapse runs without a transaction.
    :param wait_ms: milliseconds that a standby may lag behind before the primary is asked instead.
    :param longest_ms: milliseconds that one statement may take on a standby.
    :param unproved_release: ``refuse`` or ``warn``, on another Synapse than it was proved on.
    :param close_replication_gap: see ``replication_gap.py``.
    """

    standbys: tuple[Mapping[str, Any], ...] = ()
    standbys_file: str = ""
    only: frozenset[str] = frozenset()
    single_statements: bool = False
    wait_ms: int = 20
    longest_ms: int = 10_000
    unproved_release: str = "refuse"
    close_replication_gap: bool = False

    @property
    def reads(self) -> bool:
        """Whether anything is to be read on standbys at all."""
        return bool(self.standbys or self.standbys_file)


def parse(given: Mapping[str, Any] | None) -> Config:
    """The configuration, if all of it is right.

    :raises Refused: with every problem at once.
    """
    given = given or {}
    kinds: Mapping[str, type] = {
        "standbys": list, "standbys_file": str, "only": list, "single_statements": bool,
        "wait_ms": int, "longest_ms": int, "unproved_release": str, "close_replication_gap": bool,
    }
    problems = [f"{name}: no such key; there are {', '.join(kinds)}"
                for name in given if name not in kinds]
    values: dict[str, Any] = {}
    for name, kind in kinds.items():
        if name not in given:
            continue
        value = given[name]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            problems.append(f"{name}: {value!r} is not of type {kind.__name__}")
            continue
        values[name] = value
    for name in ("wait_ms", "longest_ms"):
        if name in values and values[name] <= 0:
            problems.append(f"{name}: {values[name]} is not more than 0 milliseconds")
    if values.get("unproved_release", "warn") not in WORDS:
        problems.append(f"unproved_release: {values['unproved_release']!r} is neither of "
                        f"{', '.join(WORDS)}")
    if "standbys" in values and "standbys_file" in values:
        problems.append("standbys, standbys_file: say one of the two")
    if "standbys" in values:
        problems += entry_problems(values["standbys"])
        values["standbys"] = tuple(values["standbys"])
    if "only" in values:
        if not all(isinstance(desc, str) for desc in values["only"]):
            problems.append("only: every entry is the description of an interaction")
        else:
            values["only"] = frozenset(values["only"])
    if problems:
        raise Refused("; ".join(problems))
    return Config(**values)


def entry_problems(entries: Sequence[Any]) -> list[str]:
    """What is wrong with a list of standbys."""
    problems = []
    names: set[str] = set()
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, Mapping) or not isinstance(entry.get("host"), str):
            problems.append(f"standby {number}: {entry!r} names no host")
            continue
        if "," in f"{entry['host']}{entry.get('port', '')}":
            problems.append(f"standby {number}: {entry['host']}: an entry is one server")
        values = [value for value in entry.values() if not isinstance(value, (str, int))]
        if values or any(not isinstance(key, str) for key in entry):
            problems.append(f"standby {number}: libpq's words and plain values, not {values!r}")
        if name_of(entry) in names:
            problems.append(f"standby {number}: {name_of(entry)} is there twice")
        names.add(name_of(entry))
    return problems


def name_of(entry: Mapping[str, Any]) -> str:
    """A standby's name in logs and metrics."""
    return f"{entry['host']}:{entry.get('port', 5432)}"


def primary_args(own: Mapping[str, Any]) -> dict[str, Any]:
    """What the barrier's connection to the primary is made with.

    :param own: Synapse's ``database.args``.
    """
    args = {name: value for name, value in own.items() if not name.startswith("cp_")}
    return {**KEEPALIVES, "application_name": "synapse_read_index", **args}


def standby_args(own: Mapping[str, Any], entry: Mapping[str, Any]) -> dict[str, Any]:
    """What a connection to one standby is made with.

    Everything that chooses a server is said here: what is not would come from the several servers
    of Synapse's own arguments, or of the libpq service that they name.

    :param own: Synapse's ``database.args``.
    :param entry: the standby's entry.
    """
    args = primary_args(own)
    options = f"{entry.get('options', args.get('options', ''))} {SESSION}".strip()
    chosen = {"hostaddr": "", "port": 5432, "target_session_attrs": "any"}
    names = {"application_name": "synapse_standby_reads", "options": options}
    return {**args, **chosen, **entry, **names}
