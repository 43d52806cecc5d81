"""Runs on the master: waits until all named minions answer a ping. Arguments: seconds, names."""

from __future__ import annotations

import sys
import time

import salt.client

seconds, names = float(sys.argv[1]), sys.argv[2].split(",")
end = time.monotonic() + seconds
missing = set(names)
client = salt.client.LocalClient()
while True:
    try:
        answer = client.cmd(
            sorted(missing), "test.ping", tgt_type="list", timeout=4, gather_job_timeout=2
        )
    except Exception as error:
        answer = {}
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    missing -= {name for name, said in answer.items() if said is True}
    if not missing:
        sys.exit(0)
    if time.monotonic() > end:
        sys.exit(f"no answer from: {', '.join(sorted(missing))}")
    time.sleep(0.2)
