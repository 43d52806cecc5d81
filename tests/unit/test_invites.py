"""Invites: who may come, by which proof, how often, and what an id may look like."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
import yaml
from saltworks import admission, invites, join_machine, user_data
from saltworks.errors import Refused
from saltworks.invites import Invite
from saltworks.keys import Key

NOW = 1_000_000.0
MASTER_KEY = "m" * 64
PUBLIC = "-----BEGIN PUBLIC KEY-----\nMIIBIjANBgkq\n-----END PUBLIC KEY-----\n"
ANOTHER = PUBLIC.replace("kq", "KQ")


def key() -> str:
    return MASTER_KEY


def invite(pattern: str = "sync-2", uses: int = 1, **used: str) -> dict[str, Invite]:
    made = invites.fresh(pattern, uses, 1800, NOW)
    named = {name.replace("_", "-"): fingerprint for name, fingerprint in used.items()}
    return {pattern: dataclasses.replace(made, used=named)}


def proof(known: dict[str, Invite], minion: str = "sync-2", public: str = PUBLIC) -> str:
    (made,) = known.values()
    return join_machine.proof_of(invites.secret_of(made, MASTER_KEY), minion, public)


def refusal(known: dict[str, Invite], minion: str, public: str, shown: str, at: float = NOW) -> str:
    verdict = invites.judged(known, key, minion, public, shown, at)
    assert (verdict.invite is None) == bool(verdict.refusal)
    return verdict.refusal


def test_the_proof_is_of_one_invite_one_id_and_one_key() -> None:
    known = invite()
    verdict = invites.judged(known, key, "sync-2", PUBLIC, proof(known), NOW)
    assert verdict.invite is not None
    assert verdict.invite.used == {"sync-2": invites.fingerprint(PUBLIC)}
    wrong = "its proof is not of this invite, id and key"
    assert refusal(known, "sync-2", ANOTHER, proof(known)) == wrong, "stolen"
    assert refusal(known, "sync-2", PUBLIC, proof(known, minion="sync-3")) == wrong
    assert refusal(known, "sync-2", PUBLIC, "0" * 64) == wrong
    assert refusal(known, "sync-3", PUBLIC, proof(known, minion="sync-3")) == "it is not invited"
    again = invite()
    assert refusal(again, "sync-2", PUBLIC, proof(known)) == wrong, "of an earlier invite"


def test_it_is_used_once_and_by_its_own_key_again_and_not_after_its_time() -> None:
    own = invites.fingerprint(PUBLIC)
    known = invite(sync_2=own)
    assert refusal(known, "sync-2", PUBLIC, proof(known)) == "", "a run that died goes on"
    other = proof(known, public=ANOTHER)
    assert refusal(known, "sync-2", ANOTHER, other) == "its invite was used by another key"
    fresh = invite()
    late = refusal(fresh, "sync-2", PUBLIC, proof(fresh), at=NOW + 1800)
    assert late == "its invite has expired"


def test_a_pattern_lets_in_so_many_each_bound_to_its_key() -> None:
    known = invite("sync-*", uses=2, sync_1=invites.fingerprint(ANOTHER))
    assert refusal(known, "sync-7", PUBLIC, proof(known, "sync-7")) == ""
    taken = refusal(known, "sync-1", PUBLIC, proof(known, "sync-1"))
    assert taken == "its invite was used by another key"
    full = invite("sync-*", uses=1, sync_1=invites.fingerprint(ANOTHER))
    assert "sync-* is used up" in refusal(full, "sync-7", PUBLIC, proof(full, "sync-7"))
    for minion in ("sync-", "sync", "sender-1", "xsync-1"):
        assert refusal(known, minion, PUBLIC, proof(known, minion)) == "it is not invited"


@pytest.mark.parametrize(
    "minion",
    ["sync-*", "*", "sync-2\n", "sync-2\nx", "../sync-2", "sync-2/../x", "{{ 7 }}", "sync-{{ x }}",
     "SYNC-2", "sync 2", "sync-2;", "", "-", "sync-\x00", "sync-é", "s" * 65, "sync-2'"],
)  # fmt: skip
def test_an_id_that_could_be_more_than_an_id_is_nobodys(minion: str) -> None:
    known = invite("sync-*", uses=5)
    assert refusal(known, minion, PUBLIC, proof(known, minion)) == "it is not invited"
    if minion != "sync-*":
        with pytest.raises(Refused, match="is no minion id and no pattern"):
            invites.fresh(minion, 1, 60, NOW)


def test_only_a_covered_id_costs_the_vault_a_look() -> None:
    def unwanted() -> str:
        raise AssertionError("the key was asked for")

    known = invite()
    assert invites.judged(known, unwanted, "sync-3", PUBLIC, "0" * 64, NOW).refusal
    assert invites.judged(known, unwanted, "sync-2", PUBLIC, "0" * 64, NOW + 1e6).refusal


def test_wrong_words_are_all_said_at_once() -> None:
    with pytest.raises(Refused) as said:
        invites.fresh("sync-2", 0, 0, NOW)
    for words in ("sync-2 is one machine, 0 cannot come", "say 1 to 1000", "say 1s to 366d"):
        assert words in str(said.value)
    assert [invites.seconds_of(ttl) for ttl in ("30m", "12h", "7d", "45s", 90)] == [
        1800, 43200, 604800, 45, 90,
    ]  # fmt: skip
    for ttl in ("soon", "-5m", "1w", ""):
        with pytest.raises(Refused, match="is no time"):
            invites.seconds_of(ttl)


def test_the_record_and_the_screen_show_no_secret() -> None:
    known = invite("sync-*", uses=2, sync_1="f" * 64)
    (made,) = known.values()
    secret = invites.secret_of(made, MASTER_KEY)
    assert secret not in str(invites.rows(known))
    assert invites.of(invites.rows(known)) == known
    shown = invites.shown(made, NOW)
    assert (shown["state"], shown["used"], shown["by"]) == ("stands", "1 of 2", ["sync-1"])
    assert secret not in str(shown)
    assert invites.shown(made, NOW + 1e6)["state"] == "expired"


def test_a_key_that_waits_in_an_invited_ones_place_is_no_reason_but_an_accepted_one_is() -> None:
    own = Key("pending", join_machine.plain(PUBLIC))
    other = Key("pending", join_machine.plain(ANOTHER))
    assert admission.key_refusal(own, PUBLIC) == ""
    assert admission.key_refusal(other, PUBLIC) == ""
    assert admission.key_refusal(Key("accepted", own.public), PUBLIC) == ""
    assert "another key is accepted" in admission.key_refusal(Key("accepted", other.public), PUBLIC)
    assert "rejected" in admission.key_refusal(Key("rejected", own.public), PUBLIC)
    assert "no key waits" in admission.key_refusal(None, PUBLIC)


def test_the_user_data_makes_key_proof_and_settings_and_forgets_the_secret(tmp_path: Path) -> None:
    made = invites.fresh("sync-*", 3, 1800, NOW)
    secret = invites.secret_of(made, MASTER_KEY)
    text = user_data.render(made, secret, "198.18.0.2", "aa:bb")
    assert text.startswith("#cloud-config\n# Whoever has this text can join as sync-* until 1970")
    files = {row["path"]: row for row in yaml.safe_load(text)["write_files"]}
    assert files[user_data.TOLD]["permissions"] == "0600"
    program = tmp_path / "join.py"
    program.write_text(files[user_data.PROGRAM]["content"])
    told = tmp_path / "join.json"
    restart = ["touch", str(tmp_path / "started")]
    told.write_text(user_data.told(made, secret, "198.18.0.2", "aa:bb", str(tmp_path), restart))
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text("0123456789abcdef\n")
    words = ["/usr/bin/python3", str(program), str(told)]
    codes = [
        subprocess.run(words, check=False, timeout=60, capture_output=True).returncode
        for _ in range(2)
    ]
    assert codes == [0, 1], "the second time it has nothing to be told"
    minion = join_machine.minion_id("sync-*", tmp_path)
    assert not told.exists()
    assert (tmp_path / "started").exists()
    settings = yaml.safe_load((tmp_path / "etc/salt/minion.d/saltworks-join.conf").read_text())
    public = (tmp_path / "etc/salt/pki/minion/minion.pub").read_text()
    assert invites.PUBLIC_KEY.fullmatch(public)
    assert (settings["id"], settings["master"], settings["master_finger"]) == (
        minion, "198.18.0.2", "aa:bb",
    )  # fmt: skip
    assert secret not in str(settings)
    shown = settings["grains"]["join_proof"]
    verdict = invites.judged({"sync-*": made}, key, minion, public, shown, NOW)
    assert verdict.refusal == ""
    private = tmp_path / "etc/salt/pki/minion/minion.pem"
    assert private.stat().st_mode & 0o777 == 0o400
