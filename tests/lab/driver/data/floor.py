"""Runs on the master: how soon a minion that starts can be used. Arguments: minion, SLS, a file.

The file is made when it listens; the minion is to be started then. Prints, in JSON, when the minion
had answered a ping and when it had applied the SLS, by the monotonic clock.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import salt.client
import salt.config
import salt.utils.event

minion, sls, listening = sys.argv[1:]
client = salt.client.LocalClient()
opts = salt.config.client_config("/etc/salt/master")
with salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=True) as bus:
    bus.connect_pub(timeout=5)
    Path(listening).touch()
    if bus.get_event(wait=60, tag=f"salt/minion/{minion}/start") is None:
        sys.exit(f"{minion} did not start within 60 s")
if client.cmd(minion, "test.ping", timeout=10) != {minion: True}:
    sys.exit(f"{minion} does not answer a ping")
answered = time.monotonic()
states = client.cmd(minion, "state.apply", [sls], timeout=30).get(minion)
if not isinstance(states, dict) or not all(row["result"] for row in states.values()):
    sys.exit(f"{minion} did not apply {sls}: {states}")
print(json.dumps({"answered": answered, "applied": time.monotonic()}))
