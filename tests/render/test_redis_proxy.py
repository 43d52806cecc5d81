"""The real HAProxy accepts what the formula renders, and it says what it is to say."""

from __future__ import annotations

import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from saltworks import pki

from tests.render import trees

CASES = [case for case in trees.all_cases() if case.sls == "redis_proxy"]
HAPROXY = "/usr/sbin/haproxy"


def rendered(renderer: trees.Renderer, case: trees.Case) -> str:
    return renderer.template(case, "salt://redis_proxy/files/haproxy.cfg.jinja", {})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_haproxy_accepts_it(renderer: trees.Renderer, case: trees.Case, tmp_path: Path) -> None:
    assert Path(HAPROXY).exists(), "apt-get install --no-install-recommends haproxy"
    authority = tmp_path / "authority.pem"
    authority.write_text(pki.make_authority("tests", datetime.now(UTC))[0])
    config = tmp_path / "haproxy.cfg"
    text = rendered(renderer, case).replace("/etc/haproxy/redis-authority.pem", str(authority))
    config.write_text(text.replace("    user haproxy\n    group haproxy\n", ""))
    done = subprocess.run(
        [HAPROXY, "-c", "-f", str(config)], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_other_machine_is_verified(renderer: trees.Renderer, case: trees.Case) -> None:
    text = rendered(renderer, case)
    servers = re.findall(r"^    server (\S+) (.*)$", text, re.M)
    assert servers
    verified = "ssl verify required ca-file /etc/haproxy/redis-authority.pem"
    for name, words in servers:
        assert f"{verified} verifyhost {name} " in f"{words} "


@pytest.mark.parametrize("case", CASES, ids=str)
def test_its_password_is_not_there_to_read(renderer: trees.Renderer, case: trees.Case) -> None:
    assert case.pillar["redis_proxy"]["check"]["password"] not in rendered(renderer, case)


def test_of_three_all_others_must_follow(renderer: trees.Renderer) -> None:
    """Of three, one that is followed by one may yet not be the only master."""
    (case,) = [case for case in CASES if case.name == "three"]
    text = rendered(renderer, case)
    assert (
        "{ path /redis-1 } master-redis-1 follows-redis-1-redis-2 !named-redis-2 "
        "follows-redis-1-redis-3 !named-redis-3" in text
    )
    up = {name: f"{{ nbsrv(to-{name}) ge 1 }}" for name in ("redis-1", "redis-2", "redis-3")}
    assert f"if {up['redis-3']} !{up['redis-1']} !{up['redis-2']}\n" in text
