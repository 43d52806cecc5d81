"""nginx with workers behind it: who keeps with whom, and what happens when one fails."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import pytest
from saltworks import routing, workers
from saltworks.routing import Request

from tests import cluster
from tests.process.front_door import FrontDoor, accepts, wait_for
from tests.process.worker_front import Answer, certificate, front, plan, stub
from tests.process.worker_stub import Workers
from tests.render.conftest import nginx_binary, renderer

__all__ = ["certificate", "front", "nginx_binary", "plan", "renderer", "stub"]

SECONDS = 30


@pytest.mark.parametrize("uri", [
    "/_matrix/client/v3/rooms/%21a%2Fb%3Ax/messages?from=t1%2F2&dir=b",
    "/_matrix/client/v3/directory/room/%23a%2Fb%3Ax",
    "/_matrix/federation/v1/event/%24a%2Bb==",
    "/_matrix/client/v3/rooms/!a:x/state/m.x/%20%25%0a",
])
def test_a_uri_arrives_as_it_was_sent(front: FrontDoor, stub: Workers, uri: str) -> None:
    assert Answer(front, "GET", uri).status == 200
    assert stub.seen[-1].line == f"GET {uri}"


SYNC = "/_matrix/client/v3/sync?since=s1"


def test_all_of_a_person_s_devices_come_to_one_process_whatever_their_tokens(
    plan: workers.Workers, front: FrontDoor, stub: Workers
) -> None:
    pool = {row.name for row in plan.pools["sync"]}
    used = set()
    for person in range(12):
        name = cluster.base64_of(f"person{person}")
        opaque = [f"mat_{person}a", f"MDAx{person}b"]
        stub.owners.update(dict.fromkeys(opaque, name))
        tokens = [f"syt_{name}_aaaa_111111", f"syt_{name}_bbbb_222222", *opaque]
        by = {
            Answer(front, "GET", SYNC, {"Authorization": f"Bearer {token}"}).by for token in tokens
        } | {Answer(front, "GET", f"{SYNC}&access_token={token}").by for token in tokens}
        assert len(by) == 1
        used |= by
        keys = {
            routing.route(
                Request("GET", SYNC, f"Bearer {token}"), plan, lambda t: stub.owners.get(t, "")
            ).key
            for token in tokens
        }
        assert keys == {name}
    assert used == pool
    # A token's owner is asked for once, and that of a token that says it never.
    assert set(stub.asked.values()) == {1}
    assert not any(token.startswith("syt_") for token in stub.asked)


def test_whose_token_nobody_knows_is_served_all_the_same(front: FrontDoor, stub: Workers) -> None:
    by = {Answer(front, "GET", SYNC, {"Authorization": "Bearer what"}).by for _ in range(5)}
    assert len(by) == 1
    assert stub.asked == {"what": 1}
    for name in ("client-1-1", "client-2-1"):
        stub.stop(name)
    assert Answer(front, "GET", SYNC, {"Authorization": "Bearer other"}).status == 200


@pytest.mark.parametrize(("uris", "headers"), [
    (["PUT /_matrix/client/v3/rooms/!{}:x/send/m.x/1",
      "PUT /_matrix/client/r0/rooms/%21{}%3Ax/state/a",
      "POST /_matrix/client/v3/rooms/!{}%3ax/invite"], [{}, {"Authorization": "Bearer other"}]),
    (["PUT /_matrix/federation/v1/send/1", "PUT /_matrix/federation/v1/send/2"],
     [{"Authorization": 'X-Matrix origin={}.org,key="ed25519:1",sig="a"'},
      {"Authorization": 'X-Matrix key="ed25519:1",origin="{}.org",sig="b"'}]),
    (["GET /_matrix/federation/v1/state_ids/!{}:x?event_id=$1"], [{}, {"Authorization": "other"}]),
])
def test_requests_of_one_room_or_server_come_to_one_process(
    front: FrontDoor, uris: list[str], headers: list[dict[str, str]]
) -> None:
    used = set()
    for which in ("a", "b", "c", "d", "e", "f", "g", "h"):
        by = set()
        for line in uris:
            method, uri = line.format(which).split()
            for row in headers:
                sent = {key: value.replace("{}", which) for key, value in row.items()}
                by.add(Answer(front, method, uri, sent).by)
        assert len(by) == 1
        used |= by
    assert len(used) == 2


def test_one_that_is_gone_is_replaced_by_another_and_all_by_main(
    plan: workers.Workers, front: FrontDoor, stub: Workers
) -> None:
    stub.stop("sender-1-1")
    for room in range(8):
        uri = f"/_matrix/client/v3/rooms/!{room}:x/send/m.x/1"
        assert Answer(front, "POST", uri.removesuffix("/1")).by == "sender-2-1"
    stub.stop("sender-2-1")
    assert Answer(front, "POST", "/_matrix/client/v3/rooms/!1:x/send/m.x").by == "main"
    stub.start("sender-1-1")
    stub.start("sender-2-1")


def test_a_machine_that_is_lost_costs_one_request_two_seconds(
    plan: workers.Workers, front: FrontDoor, stub: Workers
) -> None:
    uris = [f"/_matrix/client/v3/rooms/!{room}:x/send/m.x" for room in range(8)]
    lost = [uri for uri in uris if Answer(front, "POST", uri).by == "sender-1-1"]
    stub.stop("sender-1-1")
    row = plan.processes["sender-1-1"]
    # Its backlog is full: what is sent to it is neither taken nor refused.
    with socket.create_server((row.address, row.port), backlog=0) as silent:
        held = [socket.socket() for _ in range(4)]
        for one in held:
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
        begun = time.monotonic()
        assert Answer(front, "POST", lost[0]).by == "sender-2-1"
        assert 1.5 < time.monotonic() - begun < 8
        begun = time.monotonic()
        assert {Answer(front, "POST", uri).by for uri in lost * 3} == {"sender-2-1"}
        # Two seconds each, if it were tried again.
        assert time.monotonic() - begun < 10
        for one in held:
            one.close()


def test_a_post_that_was_sent_is_not_sent_again(front: FrontDoor, stub: Workers) -> None:
    stub.moods.update({"sender-1-1": "cut", "sender-2-1": "cut"})
    assert Answer(front, "POST", "/_matrix/client/v3/rooms/!1:x/send/m.x").status == 502
    assert len(stub.seen) == 1
    assert front.did("POST", "/_matrix/client/v3/rooms/!1:x/send/m.x") == 0
    # One with a transaction id may be.
    assert Answer(front, "PUT", "/_matrix/client/v3/rooms/!1:x/send/m.x/1").by == "main"


@pytest.mark.parametrize("line", [
    "PUT /_matrix/client/v3/rooms/!a:x/typing/@a:x", "PUT /_matrix/client/v3/sendToDevice/m.x/1",
    "POST /_matrix/client/v3/rooms/!a:x/receipt/m.read/$1",
    "POST /_matrix/client/v3/rooms/!a:x/read_markers",
    "PUT /_matrix/client/v3/pushrules/global/override/a", "DELETE /_matrix/client/v3/pushrules/a",
])
def test_what_only_its_writer_can_do_reaches_nobody_else(
    front: FrontDoor, stub: Workers, line: str
) -> None:
    method, uri = line.split()
    assert Answer(front, method, uri).by.startswith("writer-")
    for name in ("writer-1-1", "writer-2-1"):
        stub.stop(name)
    before = len(stub.seen)
    answer = Answer(front, method, uri)
    assert answer.status == 503
    assert json.loads(answer.text)["errcode"] == "M_UNKNOWN"
    assert answer.headers["retry-after"] == "2"
    assert (len(stub.seen), front.did(method, uri)) == (before, 0)


@pytest.mark.parametrize(("method", "uri"), [
    ("GET", "/_matrix/client/v3/sync?since=s1&timeout=30000&filter=%7B%22a%22%7D"),
    ("POST", "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=1&timeout=30000"),
])
def test_a_long_poll_that_is_cut_is_asked_of_another_without_its_waiting_time(
    front: FrontDoor, stub: Workers, method: str, uri: str
) -> None:
    first = Answer(front, method, uri).by
    stub.moods[first] = "cut"
    answer = Answer(front, method, uri)
    other = {"sync-1-1": "sync-2-1", "sync-2-1": "sync-1-1"}[first]
    again = uri.replace("timeout=30000", "timeout=0")
    assert (answer.status, answer.by) == (200, other)
    assert stub.seen[-1].line == f"{method} {again}"
    stub.moods[other] = "cut"
    answer = Answer(front, method, uri)
    assert (answer.status, answer.by) == (200, "main")
    assert front.did(method, again) == 1


@pytest.mark.parametrize("front", [1], indirect=True)
def test_more_initial_syncs_than_there_may_be_are_told_to_come_back(
    front: FrontDoor, stub: Workers
) -> None:
    stub.moods.update({"initial-sync-1-1": "hold", "initial-sync-2-1": "hold"})
    uri = "/_matrix/client/v3/sync"
    threading.Thread(target=_give_up, args=(front, uri), daemon=True).start()
    wait_for("the first", lambda: bool(stub.seen))
    answer = Answer(front, "GET", uri)
    assert answer.status == 429
    assert json.loads(answer.text)["errcode"] == "M_LIMIT_EXCEEDED"
    assert len(stub.seen) == 1
    # Incremental ones are apart.
    assert Answer(front, "GET", SYNC).by.startswith("sync-")


def _give_up(front: FrontDoor, uri: str) -> None:
    connection = front.connection()
    connection.timeout = 3
    with contextlib.suppress(OSError):
        connection.request("GET", uri)
        connection.getresponse()


def test_the_log_names_who_answered(front: FrontDoor, stub: Workers) -> None:
    log = front.folder / "var/log/nginx/saltworks-chat.access.log"
    by = Answer(front, "GET", SYNC, {"Authorization": "Bearer syt_YQ_b_c"}).by
    Answer(front, "GET", "/_matrix/client/v3/thirdparty/protocols")
    stub.moods[by] = "cut"
    other = Answer(front, "GET", SYNC, {"Authorization": "Bearer syt_YQ_b_c"}).by
    wait_for("three lines", lambda: len(log.read_text().splitlines()) == 3)
    ends = [line.rsplit(" ", 2)[1:] for line in log.read_text().splitlines()]
    assert ends == [["sync/user", by], ["main", "main"], ["sync/user", other]]
    assert "syt_" not in log.read_text()


def test_what_waits_at_the_closed_door_comes_to_its_process_when_it_opens(
    front: FrontDoor, stub: Workers
) -> None:
    lines = [
        ("PUT", "/_matrix/client/v3/rooms/!a:x/typing/@a:x", "writer-"), ("GET", SYNC, "sync-"),
        ("POST", "/_matrix/client/v3/rooms/!a:x/send/m.x", "sender-"),
        ("GET", "/_matrix/client/v3/thirdparty/protocols", "main"),
    ]
    front.close(notice=0)
    answers: dict[str, Answer] = {}
    threads = [
        threading.Thread(target=lambda m=m, u=u: answers.__setitem__(u, Answer(front, m, u)))
        for m, u, _ in lines
    ]
    for thread in threads:
        thread.start()
    assert all(map(accepts, front.ports["found"]))
    threads[0].join(0.5)
    assert (answers, stub.seen) == ({}, [])
    front.door.open_("found")
    for thread in threads:
        thread.join(SECONDS)
    for _, uri, by in lines:
        assert (answers[uri].status, answers[uri].by[: len(by)]) == (200, by)
    assert {row.headers["x-forwarded-for"] for row in stub.seen} == {"127.0.0.1"}
    assert {row.headers["x-forwarded-proto"] for row in stub.seen} == {"https"}
