"""Accounts of Redis and Sentinel, as the formulas write them."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from tests.render import trees

CASES = {case.sls: case for case in reversed(trees.all_cases())
         if case.sls in ("redis.configured", "sentinel.configured")}


@pytest.mark.parametrize(("sls", "accounts"), [
    ("redis.configured", ("replication", "sentinel", "check")),
    ("sentinel.configured", ("account", "check")),
])
def test_an_account_without_a_password_is_none(
    renderer: trees.Renderer, sls: str, accounts: tuple[str, ...]
) -> None:
    """One that has the empty password would let everybody in."""
    case, formula = CASES[sls], sls.partition(".")[0]
    source = f"salt://{formula}/files/users.acl.jinja"
    users = renderer.template(case, source, {}).splitlines()
    for account in accounts:
        pillar = copy.deepcopy(dict(case.pillar))
        name = pillar[formula][account]["user"]
        pillar[formula][account]["password"] = ""
        left = renderer.template(replace(case, pillar=pillar), source, {}).splitlines()
        gone = [line for line in users if line not in left]
        assert [line.split()[1] for line in gone] == [name]
        assert left[0] == "user default off"
