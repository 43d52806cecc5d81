"""Runs on the master: what Salt itself takes for the actions of a join, with nothing in them.

Arguments: minion, an SLS that does nothing, an orchestration whose steps do nothing, the kinds of
module with the options of their sync, in JSON, a file. The file is made when it listens; the minion
is to be started then. Prints, in JSON, `answered`, when the minion had answered a ping, by the
monotonic clock, and in seconds: `orchestration`, in a process of its own; `modules`, the kinds, of
which none is new; `state`, a state run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import salt.client
import salt.config
import salt.utils.event

minion, sls, orchestration, kinds, listening = sys.argv[1:]
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
run = [sys.executable, "-c", "from salt.scripts import salt_run; salt_run()"]
begun = time.monotonic()
run += ["state.orchestrate", orchestration]
subprocess.run(run, check=True, timeout=60, capture_output=True)
orchestrated = time.monotonic()
for kind, options in json.loads(kinds).items():
    more = {"saltenv": "base", **options}
    if minion not in client.cmd(minion, f"saltutil.sync_{kind}", timeout=30, kwarg=more):
        sys.exit(f"{minion} does not get its {kind}")
synced = time.monotonic()
states = client.cmd(minion, "state.sls", [sls], timeout=30).get(minion)
if not isinstance(states, dict) or not all(row["result"] for row in states.values()):
    sys.exit(f"{minion} did not apply {sls}: {states}")
applied = time.monotonic()
took = {"orchestration": orchestrated - begun, "modules": synced - orchestrated}
print(json.dumps({"answered": answered, **took, "state": applied - synced}))
