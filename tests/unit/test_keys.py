"""The key store, on Salt's own files: exact ids, and nothing that a glob could reach."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import salt.config
import salt.key
from salt.utils.crypt import pem_finger
from saltworks.errors import Refused
from saltworks.keys import Key, Keys

from tests.process.strangers import Stranger


@pytest.fixture
def opts(tmp_path: Path) -> dict[str, Any]:
    made: dict[str, Any] = salt.config.master_config(None)
    for name in ("pki_dir", "cachedir", "sock_dir"):
        made[name] = str(tmp_path / name)
        (tmp_path / name).mkdir()
    for name in ("minions", "minions_pre", "minions_rejected", "minions_denied"):
        (tmp_path / "pki_dir" / name).mkdir()
    made.update(root_dir=str(tmp_path), user="root", id="salt_master", __role="master")
    return made


def test_one_key_is_accepted_and_no_other(opts: dict[str, Any]) -> None:
    keys = Keys(opts)
    mine, other = Stranger.fresh().public_key, Stranger.fresh().public_key
    assert keys.get("sync-2") is None
    keys.put_pending("sync-2", other)
    keys.put_pending("sync-22", other)
    keys.put_pending("sync-2", mine)
    assert keys.get("sync-2") == Key("pending", mine.strip())
    keys.accept("sync-2")
    assert keys.get("sync-2") == Key("accepted", mine.strip())
    assert keys.get("sync-22") == Key("pending", other.strip())
    own = Key("accepted", mine).fingerprint
    assert keys.fingerprints(["sync-2", "sync-22", "nobody"]) == {"sync-2": own}


@pytest.mark.parametrize("minion", ["*", "sync-*", "../minions/x", "a\nb", "{{ a }}", ""])
def test_what_is_more_than_an_id_is_refused_before_it_reaches_the_store(
    opts: dict[str, Any], minion: str
) -> None:
    keys = Keys(opts)
    for act in (keys.get, keys.accept, keys.remove, lambda name: keys.put_pending(name, "x")):
        with pytest.raises(Refused, match="is no id that could be a member's"):
            act(minion)
    with pytest.raises(Refused):
        keys.fingerprints([minion])


def test_what_is_no_public_key_stays_where_it_waits(
    opts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Salt's own handler would print what is logged after pytest's last line.
    monkeypatch.setattr(salt.key.log, "propagate", False)
    monkeypatch.setattr(salt.key.log, "handlers", [logging.NullHandler()])
    keys = Keys(opts)
    text = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----"
    keys.put_pending("sync-2", text)
    keys.accept("sync-2")
    assert keys.get("sync-2") == Key("pending", text)


def test_the_masters_fingerprint_is_of_its_own_key(opts: dict[str, Any]) -> None:
    keys = Keys(opts)
    with pytest.raises(Refused, match=r"salt\.pub: is not there -> start salt-master"):
        keys.master_finger()
    path = Path(opts["pki_dir"]) / "salt.pub"
    path.write_text(Stranger.fresh().public_key)
    # As a minion takes it, of the file that it got from the master.
    assert keys.master_finger() == pem_finger(path=str(path))
