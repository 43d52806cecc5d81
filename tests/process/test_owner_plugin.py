"""The plugin saltworks_owner in the real release: whose a token is, in a header."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml
from saltworks import modules

from tests import cluster
from tests.lab.driver import PROJECT
from tests.process.front_door import accepts, free_ports, wait_for
from tests.render.conftest import synapse_release

__all__ = ["synapse_release"]

PATH = "/_synapse/client/saltworks/owner"


@pytest.fixture(scope="module")
def url(synapse_release: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Synapse with the plugin, and registration open."""
    folder = tmp_path_factory.mktemp("synapse")
    (port,) = free_ports(1)
    config = {
        "server_name": "example.org",
        "report_stats": False,
        "listeners": [{"port": port, "type": "http", "bind_addresses": ["127.0.0.1"],
                       "resources": [{"names": ["client"]}]}],
        "database": {"name": "sqlite3", "args": {"database": f"{folder}/h.db"}},
        "signing_key_path": f"{folder}/signing.key",
        "media_store_path": f"{folder}/media",
        "macaroon_secret_key": "x",
        "trusted_key_servers": [],
        "enable_registration": True,
        "enable_registration_without_verification": True,
        "allow_guest_access": True,
        "modules": modules.beside_workers("redis"),
    }
    path = folder / "homeserver.yaml"
    path.write_text(yaml.safe_dump(config))
    plugins = str(PROJECT / "formulas/synapse/files/plugins")
    command = [str(synapse_release / "bin/python"), "-m", "synapse.app.homeserver", "-c", str(path)]
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": plugins}
    subprocess.run([*command, "--generate-keys"], check=True, timeout=60, cwd=folder, env=env)
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        wait_for("Synapse", lambda: accepts(port), timeout=90)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def ask(url: str, body: Any = None, token: str = "") -> tuple[int, Message, Any]:
    """Status, headers and content of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.headers, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.headers, json.load(error)


def test_a_token_s_owner_is_named_as_synapse_s_own_tokens_name_him(url: str) -> None:
    body = {"auth": {"type": "m.login.dummy"}, "username": "anna.b", "password": "a long one 1"}
    _, _, made = ask(f"{url}/_matrix/client/v3/register", body)
    token = made["access_token"]
    status, headers, content = ask(f"{url}{PATH}", token=token)
    assert (status, content) == (200, {})
    assert headers["X-Saltworks-Owner"] == cluster.base64_of("anna.b") == token.split("_")[1]


def test_a_guest_s_token_says_nothing_and_its_owner_is_named(url: str) -> None:
    _, _, made = ask(f"{url}/_matrix/client/v3/register?kind=guest", {})
    assert not made["access_token"].startswith("syt_")
    status, headers, _ = ask(f"{url}{PATH}", token=made["access_token"])
    localpart = made["user_id"].split(":")[0].removeprefix("@")
    assert (status, headers["X-Saltworks-Owner"]) == (200, cluster.base64_of(localpart))


@pytest.mark.parametrize("token", ["", "syt_YQ_nobody_123456", "mat_nobody"])
def test_nobody_s_token_has_no_owner(url: str, token: str) -> None:
    status, headers, content = ask(f"{url}{PATH}", token=token)
    assert (status, headers["X-Saltworks-Owner"]) == (401, None)
    assert content["errcode"] in ("M_MISSING_TOKEN", "M_UNKNOWN_TOKEN")


@pytest.mark.parametrize("package", modules.BESIDE_WORKERS.values())
def test_a_plugin_is_locked_by_its_hash(package: dict[str, str]) -> None:
    path = PROJECT / "formulas" / package["source"].removeprefix("salt://")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert package["source_hash"] == f"sha256={digest}"
