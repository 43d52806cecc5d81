#!/usr/bin/env python3
"""The file that Sentinel starts with: Salt's settings, and what Sentinel has learned.

Sentinel writes its configuration file anew whenever it learns something: who the master is, which
replicas and sentinels there are, what it has voted. Those lines are its own and are carried over;
all others are Salt's. So a failover changes no file that Salt has, and what Salt changes undoes no
failover. Of machines that are no longer declared nothing is carried over: else Sentinel counts a
sentinel for ever, and most of them would be more than there are.
https://redis.io/docs/latest/operate/oss_and_stack/management/sentinel/
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: What Sentinel has voted and heard, ``sentinel <word> ...``: of itself, or of the set.
EPOCHS = ("myid", "config-epoch", "leader-epoch", "current-epoch")
#: Whom it knows, ``sentinel <word> <set> <address> <port> ...``: word → key of the members.
KNOWN = {"known-replica": "servers", "known-sentinel": "sentinels"}


def composed(settings: str, members: Mapping[str, Any], kept: str) -> str:
    """Text of the file.

    :param settings: Salt's, with the master of the first start.
    :param members: who is declared: ``set``, ``servers`` and ``sentinels``, name → address.
    :param kept: the file of the last run; ``''``: this is the first start.
    """
    learned: list[str] = []
    master = ""
    for line in kept.splitlines():
        words = line.split()
        if len(words) < 3 or words[0] != "sentinel":
            continue
        named = words[2] == members["set"]
        if words[1] == "monitor":
            if named and words[3] in members["servers"].values():
                master = words[3]
        elif words[1] in KNOWN:
            if named and words[3] in members[KNOWN[words[1]]].values():
                learned.append(line)
        elif words[1] in ("myid", "current-epoch") or (words[1] in EPOCHS and named):
            learned.append(line)
    lines = [_monitored(line, master) for line in settings.splitlines()]
    return "\n".join([*lines, *learned]) + "\n"


def _monitored(line: str, master: str) -> str:
    """``sentinel monitor <set> <address> <port> <quorum>``, with the master that is known."""
    words = line.split()
    if not master or words[:2] != ["sentinel", "monitor"]:
        return line
    return " ".join([*words[:3], master, *words[4:]])


def main(settings: str, members: str, running: str) -> None:
    """Write ``running`` from the two others and itself."""
    target = Path(running)
    kept = target.read_text("utf-8") if target.exists() else ""
    declared = json.loads(Path(members).read_text("utf-8"))
    text = composed(Path(settings).read_text("utf-8"), declared, kept)
    made = target.with_name(f"{target.name}.new")
    # It holds passwords.
    made.touch(mode=0o600)
    made.write_text(text, "utf-8")
    os.replace(made, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
