#!/usr/bin/env python3
"""The file that Redis starts with: Salt's settings, and whom Sentinel told this Redis to follow.

Sentinel makes a Redis write its configuration file anew (CONFIG REWRITE), so that it is what it was
after a restart. Of that file one line alone is carried over, ``replicaof``: that line is nobody
else's, and all others are Salt's. So a failover changes no file that Salt has, and what Salt
changes undoes no failover. https://redis.io/docs/latest/commands/config-rewrite/
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: CONFIG REWRITE writes the first; the other is its name of before Redis 5.
FOLLOWS = ("replicaof", "slaveof")


def composed(settings: str, first: str, kept: str | None) -> str:
    """Text of the file.

    :param settings: Salt's, which have nothing of whom to follow.
    :param first: whom to follow at the very first start.
    :param kept: the file of the last run; none: this is the first start.
    """
    source = first if kept is None else kept
    lines = [line for line in source.splitlines() if line.split(" ")[0].lower() in FOLLOWS]
    return "\n".join([settings.rstrip("\n"), *lines]) + "\n"


def main(settings: str, first: str, running: str) -> None:
    """Write ``running`` from the two others and itself."""
    target = Path(running)
    kept = target.read_text("utf-8") if target.exists() else None
    text = composed(Path(settings).read_text("utf-8"), Path(first).read_text("utf-8"), kept)
    made = target.with_name(f"{target.name}.new")
    # It holds the password by which replicas copy.
    made.touch(mode=0o600)
    made.write_text(text, "utf-8")
    os.replace(made, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
