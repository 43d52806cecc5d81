"""A real etcd of three members with the formula's own files."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from salt.exceptions import CommandExecutionError

from tests.process import postgres
from tests.process.front_door import wait_for
from tests.process.patroni_house import Authority, Etcd, Programs, folder, member
from tests.render import trees
from tests.render.conftest import renderer

__all__ = ["renderer"]

pytestmark = pytest.mark.alone

#: A new leader has to be there before Patroni gives up, see formulas/etcd/defaults.yaml.
ELECTED_SECONDS = 5

KEYS = postgres.loaded(("saltworks_etcd_keys",))


@pytest.fixture(scope="module")
def three(renderer: trees.Renderer) -> Iterator[Etcd]:
    with folder() as top:
        programs = Programs(top)
        try:
            yield Etcd(renderer, programs, Authority(), 3)
        finally:
            programs.end()


def test_three_members_have_one_leader(three: Etcd) -> None:
    rows = [member().status(three.config(name)) for name in three.peers]
    assert {row["leader"] for row in rows} == {rows[0]["leader"]}
    assert all(row["healthy"] for row in rows)
    assert [row["name"] for row in rows] == list(three.peers)
    assert sum(one["leader"] for one in rows[0]["members"].values()) == 1


def test_nobody_gets_in_without_a_certificate(three: Etcd) -> None:
    home = three.programs.top / "dcs1"
    context = ssl.create_default_context(cafile=str(home / "tls.authority"))
    url = f"https://{three.hosts[0]}/v3/kv/range"
    with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
        urllib.request.urlopen(url, b"{}", timeout=5, context=context)
    peer = f"https://127.0.0.101:{three.peer}/members"
    with pytest.raises((urllib.error.URLError, ssl.SSLError, ConnectionError)):
        urllib.request.urlopen(peer, timeout=5, context=context)


def test_one_of_another_authority_is_a_stranger(three: Etcd) -> None:
    stranger = Authority().issue("dcs1", "127.0.0.101")
    home = three.programs.top / "stranger"
    home.mkdir()
    for kind in ("crt", "key"):
        (home / kind).write_text(stranger[kind])
    at = {**three.at(), "crt": str(home / "crt"), "key": str(home / "key")}
    with pytest.raises(CommandExecutionError, match="no etcd answers"):
        KEYS["etcd_keys.read"](at, "/x")


def test_a_key_is_swapped_only_as_it_was_read(three: Etcd) -> None:
    at = three.at()
    read, swap = KEYS["etcd_keys.read"], KEYS["etcd_keys.swap"]
    assert read(at, "/a/one") == {"text": "", "revision": 0}
    assert swap(at, "/a/one", "x", 0)
    assert not swap(at, "/a/one", "y", 0)
    value = read(at, "/a/one")
    assert value["text"] == "x"
    assert swap(at, "/a/one", "y", value["revision"])
    assert swap(at, "/b", "kept", 0)
    below = KEYS["etcd_keys.below"](at, "/a/")
    assert {key: row["text"] for key, row in below.items()} == {"/a/one": "y"}
    assert KEYS["etcd_keys.remove"](at, "/a/") == 1
    assert read(at, "/b")["text"] == "kept"


def test_a_killed_leader_is_replaced_in_time(three: Etcd) -> None:
    before = member().status(three.config("dcs1"))["leader"]
    (other, *_) = [name for name in three.peers if name != before]
    three.kill(before)

    def elected() -> bool:
        row = member().status(three.config(other))
        return bool(row["healthy"] and row["leader"] != before)

    wait_for("another leader", elected, ELECTED_SECONDS)
    assert not member().status(three.config(other))["members"][before]["up"]
    three.start(before)
    assert member().status(three.config(other))["members"][before]["up"]


def test_one_of_three_is_not_healthy_and_says_so(three: Etcd) -> None:
    three.kill("dcs2", "dcs3")
    with pytest.raises(CommandExecutionError, match="no leader that most members know"):
        member().healthy(4, three.config("dcs1"))
    three.start("dcs2", "dcs3")


def test_a_second_start_makes_no_second_cluster(three: Etcd) -> None:
    assert KEYS["etcd_keys.swap"](three.at(), "/stays", "x", 0)
    three.kill()
    three.start()
    assert KEYS["etcd_keys.read"](three.at(), "/stays")["text"] == "x"
