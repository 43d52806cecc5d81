"""Accounts of Redis and Sentinel, as the formulas write them, and how many must agree."""

from __future__ import annotations

import copy
import re
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


@pytest.mark.parametrize(("sls", "source", "words"), [
    ("sentinel", "sentinel/files/sentinel.conf.jinja", r"^sentinel monitor .* (\d+)$"),
    ("redis_proxy", "redis_proxy/files/haproxy.cfg.jinja", r"^    acl named-.* ge (\d+)$"),
])
def test_who_asks_and_who_is_asked_count_alike(
    renderer: trees.Renderer, sls: str, source: str, words: str
) -> None:
    """What Sentinel, the proxy and ``redis_set.status`` take for most is said once."""
    case = next(case for case in trees.all_cases() if case.sls == sls)
    text = renderer.template(case, f"salt://{source}", {})
    assert {*re.findall(words, text, re.M)} == {"2"}
    other = replace(case, functions={"redis_rules.quorum": 42})
    text = renderer.template(other, f"salt://{source}", {})
    assert {*re.findall(words, text, re.M)} == {"42"}
