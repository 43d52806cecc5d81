"""Runs on the master: prints each event of its bus as one line of JSON, "ready" first."""

from __future__ import annotations

import json

import salt.config
import salt.utils.event

opts = salt.config.client_config("/etc/salt/master")
with salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=True) as bus:
    bus.connect_pub(timeout=5)
    print("ready", flush=True)
    while True:
        event = bus.get_event(wait=60, full=True)
        if event and isinstance(event.get("data"), dict):
            print(json.dumps(event, default=str), flush=True)
