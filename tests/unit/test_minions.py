"""Machines that are called through a client of Salt's."""

from __future__ import annotations

import inspect
import itertools
import time
from typing import Any

import pytest
import salt.client
from salt.exceptions import AuthenticationError, SaltClientError, SaltException
from saltworks.minions import MachineError, Machines, or_error

#: What a machine says that is at work and never comes to an end.
WORKS = "works"


class Client:
    """Salt's client, as far as it is used."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def cmd(self, *args: Any, **more: Any) -> Any:
        inspect.signature(salt.client.LocalClient.cmd).bind(self, *args, **more)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def cmd_iter_no_block(self, *args: Any, **more: Any) -> Any:
        """As Salt does it: one row an answer, and nothing again and again as long as some work."""
        inspect.signature(salt.client.LocalClient.cmd_iter_no_block).bind(self, *args, **more)
        if isinstance(self.answer, Exception):
            raise self.answer
        for name, row in self.answer.items():
            yield None
            if row is WORKS:
                yield from itertools.repeat(None)
            yield {name: row}


def machines(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Machines:
    monkeypatch.setattr(salt.client, "get_local_client", lambda **_: Client(answer))
    return Machines({})


@pytest.mark.parametrize("error", [SaltClientError("away"), AuthenticationError("not you")])
def test_a_master_that_sends_nothing_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, error: SaltException
) -> None:
    asked = machines(monkeypatch, error)
    with pytest.raises(MachineError, match=r"sent to proxy: .*; is the salt-master up\?"):
        asked.call("proxy", "door.status")
    with pytest.raises(MachineError, match=r"sent to proxy, redis: .*; is the salt-master up\?"):
        asked.calls(["proxy", "redis"], "state.highstate")
    with pytest.raises(MachineError, match=r"test.ping could not be sent to proxy, synapse: "):
        asked.answering(["proxy", "synapse"])


def test_only_who_says_that_he_is_there_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = machines(monkeypatch, {"proxy": True, "synapse": "Minion did not return"})
    assert asked.answering(["proxy", "synapse", "redis"]) == {"proxy"}


def test_one_s_failure_is_no_other_s(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"proxy": {"ret": 1}, "synapse": {"ret": "no such unit", "retcode": 1}}
    found = machines(monkeypatch, answer).calls(["proxy", "redis", "synapse"], "x.y")
    assert found["proxy"] == 1
    assert "redis did not answer x.y within 15 s" in str(found["redis"])
    assert "x.y failed on synapse: no such unit" in str(found["synapse"])


def test_who_is_at_work_for_ever_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"proxy": {"ret": 1}, "synapse": WORKS, "redis": {"ret": 1}}
    begun = time.monotonic()
    found = machines(monkeypatch, answer).calls(["proxy", "synapse"], "x.y", bound=0.3)
    assert 0.3 <= time.monotonic() - begun < 5
    assert found["proxy"] == 1
    assert "synapse did not answer x.y within 0.3 s" in str(found["synapse"])


def test_an_answer_is_shown_as_it_is_and_an_error_by_its_words() -> None:
    assert or_error({"files": 1}) == {"files": 1}
    assert or_error(MachineError("redis did not answer")) == {"error": "redis did not answer"}
