"""Runs on the master or on a minion: fires events onto the master's bus, at their moments.

On stdin, in JSON: `from` (`master` or `minion`), `at` (Unix time of the first event), `pause`
(seconds between two), `events` (pairs of tag and body). Prints how many seconds it took.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import salt.channel.client
import salt.config
import salt.utils.event

request = json.load(sys.stdin)


def fire(send: Callable[[str, Any], object]) -> None:
    for number, (tag, body) in enumerate(request["events"]):
        time.sleep(max(0.0, request["at"] + number * request["pause"] - time.time()))
        send(tag, body)
    print(json.dumps(time.time() - request["at"]))


if request["from"] == "master":
    opts = salt.config.client_config("/etc/salt/master")
    with salt.utils.event.get_master_event(opts, opts["sock_dir"], listen=False) as bus:
        fire(lambda tag, body: bus.fire_event(body, tag))
else:
    opts = salt.config.minion_config("/etc/salt/minion")
    address = socket.gethostbyname(opts["master"])
    opts["master_uri"] = f"tcp://{address}:{opts['master_port']}"
    with salt.channel.client.ReqChannel.factory(opts) as channel:

        def as_they_are(tag: str, body: Any) -> None:
            # The form in which nothing is added of who they are from.
            events = [{"tag": tag, "data": body}]
            load = {"cmd": "_minion_event", "id": opts["id"], "events": events}
            channel.send(load, timeout=60, tries=1)

        fire(as_they_are)
