"""Throw-away accounts, made beside Synapse."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
from salt.exceptions import CommandExecutionError
from saltworks.matrix import shared_secret_mac

from tests.unit.matrix_fake import FakeHomeserver
from tests.unit.modules.minion_modules import load


@pytest.fixture
def account() -> ModuleType:
    return load("_modules", "matrix_account")


def config(tmp_path: Path, text: str) -> str:
    path = tmp_path / "homeserver.yaml"
    path.write_text(text)
    return str(path)


def test_the_proof_is_the_clients_own(account: ModuleType) -> None:
    assert account.proof("s", "n", "u", "p") == shared_secret_mac("s", "n", "u", "p", False)


def test_accounts_are_made_with_passwords_of_their_own(account: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "shared").write_text("secret\n")
    for text in (
        "registration_shared_secret: secret\n",
        f"registration_shared_secret_path: {tmp_path}/shared\n",
    ):
        with FakeHomeserver() as home:
            made = account.make(home.url, config(tmp_path, text), ["one", "two"])
        assert [row["user_id"] for row in made] == ["@one:fake", "@two:fake"]
        assert [row["access_token"] for row in made] == ["one", "two"]
        assert len({row["password"] for row in made}) == 2


def test_what_is_missing_is_said(account: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CommandExecutionError, match="there is no registration_shared_secret"):
        account.make("http://127.0.0.1:1", config(tmp_path, "server_name: x\n"), ["one"])
    with pytest.raises(CommandExecutionError, match="cannot be read"):
        account.make("http://127.0.0.1:1", str(tmp_path / "none"), ["one"])
    good = config(tmp_path, "registration_shared_secret: secret\n")
    with pytest.raises(CommandExecutionError, match="does Synapse run"):
        account.make("http://127.0.0.1:1", good, ["one"])

    def refused(method: str, path: str, count: int) -> str | None:
        return "502" if method == "POST" else None

    with (
        FakeHomeserver(refused) as home,
        pytest.raises(CommandExecutionError, match="HTTP 502"),
    ):
        account.make(home.url, good, ["one"])
