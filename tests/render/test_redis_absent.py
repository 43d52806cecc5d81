"""What the formulas of Redis that survives put on a machine, their inverses take away."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.render import trees

CASES = [case for case in trees.all_cases() if case.sls in ("redis", "sentinel", "redis_proxy")]

#: They stay while the package does: without our configuration they let nothing start.
STAY = {
    "/etc/systemd/system/redis-sentinel.service.d/saltworks.conf",
    "/etc/systemd/system/haproxy.service.d/saltworks.conf",
}

#: What programs of ours make of managed files, their unfinished ones too: passwords are in them.
MADE = {
    "redis": ["/var/lib/redis/redis.conf", "/var/lib/redis/redis.conf.new"],
    "sentinel": [
        "/var/lib/redis-sentinel/sentinel.conf", "/var/lib/redis-sentinel/sentinel.conf.new",
    ],
    "redis_proxy": [],
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_no_file_is_left(renderer: trees.Renderer, case: trees.Case) -> None:
    put = [
        chunk["name"] for chunk in renderer.compile(case)
        if (chunk["state"], chunk["fun"]) == ("file", "managed")
    ]
    (inverse,) = [
        one for one in trees.all_cases() if (one.sls, one.name) == (f"{case.sls}.absent", case.name)
    ]
    gone = {
        Path(chunk["name"]) for chunk in renderer.compile(inverse)
        if (chunk["state"], chunk["fun"]) == ("file", "absent")
    }
    assert put
    left = {
        name for name in (*put, *MADE[case.sls]) if not gone & {Path(name), *Path(name).parents}
    }
    assert left == STAY & set(put)


def test_no_alarm_is_left(renderer: trees.Renderer) -> None:
    def beacons(sls: str, function: str) -> set[str]:
        case = next(case for case in trees.all_cases() if case.sls == sls)
        return {
            chunk["name"] for chunk in renderer.compile(case)
            if (chunk["state"], chunk["fun"]) == ("beacon", function)
        }

    assert beacons("sentinel.absent", "absent") == beacons("sentinel.alarm", "present") != set()
