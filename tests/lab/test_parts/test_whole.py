"""M3 as a whole, when its parts have moved: nothing of the chat is left on the old machine."""

from __future__ import annotations

import pytest

from tests.lab.driver.testinfra_backend import machine_host
from tests.lab.stage import Stage, assert_reads_as_before, changes
from tests.lab.test_parts.database import witnessed

pytestmark = pytest.mark.lab

PARTS = ("m3.auth", "m3.database", "m3.media")
#: Units of the chat that the old machine may not run any more in the end.
CHAT = ("synapse", "matrix-synapse", "postgresql", "postgresql@15-main", "slapd")


def test_with_its_parts_m3_is_achieved(stage: Stage, before: dict[str, object]) -> None:
    moved = all(stage.state(part) == "achieved" for part in PARTS)
    with witnessed(stage, "whole"):
        answer = stage.orchestrate("orch.m3")
    if moved:
        assert changes(answer) == []
    assert stage.state("m3") == "achieved"
    assert_reads_as_before(stage, before)


def test_finalized_the_old_machine_runs_nothing_of_the_chat(stage: Stage) -> None:
    stage.await_no_visitor()
    for name in ("m2", *PARTS):
        stage.lab.salt_run("milestone.arm", f"{name}.finalize")
        stage.orchestrate(f"orch.{name}.finalize")
    old = machine_host(stage.legacy)
    assert [unit for unit in CHAT if old.service(unit).is_running] == []
    assert stage.legacy.run("ls /etc/nginx/sites-enabled").stdout.split() == ["www"]
    assert changes(stage.orchestrate("orch.m3")) == []
