"""Runs on the master: one call to minions. JSON request on stdin, full answers on stdout."""

from __future__ import annotations

import json
import sys

import salt.client

request = json.load(sys.stdin)
client = salt.client.LocalClient()
answers = client.cmd(
    request["target"],
    request["function"],
    arg=request["args"],
    kwarg=request["kwargs"],
    timeout=request["timeout"],
    tgt_type=request["type"],
    full_return=True,
    gather_job_timeout=5,
)
print(json.dumps(answers, default=str))
