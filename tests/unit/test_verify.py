"""The verdict: what each milestone must show, and how that is said."""

from __future__ import annotations

from typing import Any

import pytest
from saltworks import verify
from saltworks.meeting import Check
from saltworks.plan import Placement

from tests.unit.house import House
from tests.unit.test_precheck import MAP

FOUND = Placement(synapse="legacy", managed=False, front="legacy")
AFTER_M1 = Placement(synapse="legacy", managed=True, front="legacy")
AFTER_M2 = Placement(synapse="synapse", managed=True, front="proxy")


@pytest.mark.parametrize(
    ("name", "placement", "detail"),
    [
        ("m1", AFTER_M1, None),
        ("m2", AFTER_M2, None),
        ("m1", FOUND, "the Synapse that was found is still what runs"),
        ("m2", AFTER_M1, "Synapse is on legacy, not on synapse; the front is on legacy"),
    ],
)
def test_things_are_where_the_milestone_puts_them(
    name: str, placement: Placement, detail: str | None
) -> None:
    check = verify.placed(name, MAP, placement)
    assert check.ok is (detail is None)
    assert (detail or "") in check.detail


def test_where_synapse_answers_and_what_it_reads() -> None:
    assert verify.local_url(MAP, FOUND) == "http://127.0.0.1:8008"
    assert verify.local_url(MAP, AFTER_M2) == "http://198.18.0.12:8008"
    assert verify.config_path(MAP, FOUND) == "/home/matrix/homeserver.yaml"
    assert verify.config_path(MAP, AFTER_M1) == "/etc/synapse/homeserver.yaml"


def test_the_public_address() -> None:
    def public(*ports: int) -> dict[str, Any]:
        return {"public": {"name": "chat.lale.test", "ports": list(ports)}}

    assert verify.base_url(public(8448, 443)) == "https://chat.lale.test"
    assert verify.base_url(public(8443)) == "https://chat.lale.test:8443"
    assert verify.public_port(public(8443)) == 8443
    assert verify.leads_to(["198.18.0.10"], "198.18.0.10")
    assert not verify.leads_to([], "198.18.0.10")


def test_the_release_that_answers_is_the_declared_one() -> None:
    assert verify.version(MAP, AFTER_M1, {"version": "1.163.2"}).ok
    assert verify.version(MAP, FOUND, {"version": "1.40.0"}).ok
    assert not verify.version(MAP, AFTER_M1, {"version": "1.40.0"}).ok
    assert verify.version(MAP, AFTER_M1, {"error": "silent"}).detail == "silent"


def test_nothing_else_beside_synapse() -> None:
    assert verify.alone("synapse", {"services": [], "listeners": []}).ok
    row = {"protocol": "tcp", "address": "0.0.0.0", "port": 80, "by": "nginx"}
    check = verify.alone("synapse", {"services": ["nginx.service"], "listeners": [row]})
    assert check.detail == "synapse: nginx listens on 0.0.0.0:80 (tcp); nginx.service runs"
    assert not check.ok
    assert not verify.alone("synapse", {"error": "x"}).ok


def test_no_synapse_is_left_behind() -> None:
    assert verify.emptied("legacy", {"programs": {"synapse.app.homeserver": []}}).ok
    told = {"programs": {"synapse.app.homeserver": ["matrix-synapse.service"]}}
    assert "runs in matrix-synapse.service" in verify.emptied("legacy", told).detail
    assert not verify.emptied("legacy", {"error": "x"}).ok


def test_the_verdict_names_every_failed_check_first_and_what_to_do() -> None:
    good, bad = Check("room", True, "!r"), Check("thumbnail", False, "HTTP 502")
    other = Check("search", False, "nothing found")
    lines = verify.verdict("m1", [good, bad, other]).splitlines()
    assert lines[0] == "M1 is not verified: 2 of 3 checks failed"
    assert lines[1].startswith("  - FAILED thumbnail: HTTP 502 -> check the owner of the media")
    assert lines[2].startswith("  - FAILED search: nothing found -> see journalctl -u synapse")
    assert lines[3] == "  - room: !r"
    assert verify.verdict("m2", [good]) == "M2 verified: 1 checks\n  - room: !r"
    assert lines[0] == f"M1 {verify.summary([good, bad, other])}"
    release = Check("version", True, "Synapse 1.163.2 on legacy")
    assert verify.summary([good, release]) == "verified: 2 checks, Synapse 1.163.2 on legacy"


@pytest.mark.parametrize("good", [True, False])
def test_a_good_verdict_is_kept_for_the_record(good: bool) -> None:
    row = {"state": "running", "started": 1.0}
    made = House("verify", milestones={"m1": row})
    checks = [Check("version", True, "Synapse 1.163.2 on legacy")]
    vars(made).update(map=lambda: MAP, placement=lambda cmap: AFTER_M1)
    vars(made.module).update(
        _machines=lambda *given: checks,
        _meeting=lambda *given: [Check("room", good, "!r")],
    )
    answer = made.module.check("m1")
    kept = made.store.rows["milestones"]["m1"]
    if good:
        assert answer.startswith("M1 verified: 3 checks")
        assert kept == {**row, "verified": "verified: 3 checks, Synapse 1.163.2 on legacy"}
    else:
        assert answer["retcode"] == 1
        assert kept == row
