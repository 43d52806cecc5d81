"""Our LDAP module in the release it is for: bounded, and clear when the directory is away."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.driver import PROJECT

PLUGINS = PROJECT / "formulas" / "synapse" / "files" / "plugins"
#: What the module is bound to, and what starting Python takes.
SECONDS = 5.0

#: Tries one login, as Synapse calls the module; prints what came of it.
TRY = """
import json, sys, time
import saltworks_ldap
from twisted.internet import defer, task

class Api:
    def __init__(self, known): self.known = known
    def register_password_auth_provider_callbacks(self, **callbacks): self.callbacks = callbacks
    def get_qualified_user_id(self, name): return name if name[0] == "@" else f"@{name}:lale.test"
    async def run_db_interaction(self, name, function):
        rows = [(1,)] if self.known else []
        class Transaction:
            def execute(self, sql, arguments): assert arguments == ("@hanna:lale.test",)
            def fetchall(self): return rows
        return function(Transaction())

async def login(given):
    config = {"enabled": True, "base": "ou=people", "attributes": {"uid": "uid", "name": "n",
              "mail": "m"}, **given["config"]}
    api = Api(given["known"])
    saltworks_ldap.LdapModule(saltworks_ldap.LdapModule.parse_config(config), api)
    (check,) = api.callbacks["auth_checkers"].values()
    begun, said = time.monotonic(), {}
    try:
        said["answer"] = await check("hanna", "m.login.password", {"password": "x"})
    except Exception as error:
        # As in synapse.handlers.auth: nothing but this reaches the client.
        assert isinstance(error, defer.CancelledError), repr(error)
        said.update(code=error.code, text=error.msg)
    return {**said, "seconds": time.monotonic() - begun}

def main(reactor):
    done = defer.ensureDeferred(login(json.loads(sys.argv[1])))
    return done.addCallback(lambda said: print(json.dumps(said)))

task.react(main)
"""


@pytest.fixture
def mute() -> Iterator[str]:
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def tried(release: Path, config: dict[str, Any], known: bool = False) -> dict[str, Any]:
    """What a login says that the directory of a configuration is asked for.

    known: whether Synapse itself has a password of that account.
    """
    done = subprocess.run(
        [str(release / "bin/python"), "-W", "ignore", "-c", TRY,
         json.dumps({"config": config, "known": known})],
        capture_output=True, text=True, timeout=60, check=False,
        env={"PYTHONPATH": str(PLUGINS), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.parametrize("scheme", ["ldap", "ldaps"])
@pytest.mark.parametrize("mode", ["simple", "search"])
def test_a_mute_directory_is_away_within_the_bound(
    synapse_release: Path, mute: str, scheme: str, mode: str
) -> None:
    said = tried(synapse_release, {"uri": f"{scheme}://{mute}", "mode": mode})
    assert said["code"] == 503
    assert "does not answer" in said["text"]
    assert said["seconds"] < SECONDS


def test_a_refused_connection_is_away_too_but_not_for_whom_synapse_knows(
    synapse_release: Path,
) -> None:
    config = {"uri": "ldap://127.0.0.1:1"}
    assert tried(synapse_release, config)["code"] == 503
    assert tried(synapse_release, config, known=True)["answer"] is None


def test_more_than_one_address_is_refused_when_the_configuration_is_read(
    synapse_release: Path,
) -> None:
    with pytest.raises(AssertionError, match="uri must be one address"):
        tried(synapse_release, {"uri": ["ldap://a", "ldap://b"]})
