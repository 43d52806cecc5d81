"""The real nginx accepts every site that the formula renders, and nothing slips into it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.render import trees
from tests.render.webserver import Server, make_certificate

CASES = [case for case in trees.all_cases() if case.sls == "nginx"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate and its key, as PEM."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=CASES, ids=str)
def server(
    request: pytest.FixtureRequest, tmp_path: Path, nginx_binary: Path,
    renderer: trees.Renderer, certificate: tuple[str, str],
) -> Server:
    """One case on disk."""
    return Server(tmp_path, nginx_binary, renderer, request.param, certificate)


def test_nginx_accepts_the_site(server: Server) -> None:
    done = server.test()
    assert done.returncode == 0, done.stderr


def test_nginx_accepts_every_way_the_door_can_point(server: Server) -> None:
    for path in sorted((server.folder / "etc/nginx/saltworks/door").glob("*.conf")):
        server.aim(path.stem)
        done = server.test()
        assert done.returncode == 0, f"{path.stem}: {done.stderr}"


def test_nginx_refuses_a_broken_site(server: Server) -> None:
    server.write("/etc/nginx/sites-enabled/broken", "server { listen 443 ssl; proxy_pas x; }\n")
    assert server.test().returncode != 0


def test_uri_is_passed_on_as_it_came(server: Server) -> None:
    shown = server.test().stdout
    for target in re.findall(r"proxy_pass (\S+);", shown):
        known = re.fullmatch(r"https?://(saltworks_\w+|\$saltworks_pool)", target)
        assert known, f"{target} would rewrite the URI"


def test_no_request_is_asked_twice_that_may_not_be(server: Server) -> None:
    shown = server.test().stdout
    for block in re.findall(r"location ([^{]+?) {(.*?)\n    }", shown, re.S):
        if "non_idempotent" in block[1]:
            assert block[0] in ("@polls_held", "@polls_again")


def test_token_of_an_old_client_is_not_logged(server: Server) -> None:
    formats = re.findall(r"log_format saltworks (.*?);", server.test().stdout, re.S)
    assert formats
    for text in formats:
        assert not re.search(r"\$(request\b|request_uri|args|query_string)", text)


def test_what_waited_at_the_door_comes_in_again_and_is_routed(renderer: trees.Renderer) -> None:
    (case,) = [case for case in CASES if case.name == "with workers"]
    lines = next(
        chunk["contents"] for chunk in renderer.compile(case)
        if chunk["name"] == "/etc/saltworks/door/synapse.env"
    )
    assert lines == [
        "DOOR_SYNAPSE=127.0.0.1:8018", "DOOR_SYNAPSE_MAIN=198.18.0.12:8008",
        "DOOR_SYNAPSE_POLLS=127.0.0.1:8019", "DOOR_SYNAPSE_POLLS_MAIN=198.18.0.12:8009",
        "FENCE_1=198.18.0.23:8101", "FENCE_2=198.18.0.20:8101", "FENCE_3=[2001:db8::21]:8101",
        "FENCE_4=198.18.0.22:8101",
    ]
