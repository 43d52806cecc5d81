"""A directory as slapcat writes it: read, adapted to its new machine, compared."""

from __future__ import annotations

import http.server
import ssl
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from salt.exceptions import CommandExecutionError
from saltworks import pki

from tests.unit.modules.minion_modules import load

slapd: Any = load("_modules", "slapd")
ldif: Any = load("_modules", "slapd_ldif")

CONFIG = """dn: cn=config
objectClass: olcGlobal
cn: config
olcPidFile: /somewhere/slapd.pid
olcTLSCertificateFile: /etc/ssl/old.pem
entryCSN: 20260101000000.000000Z#000000#000#000000

dn: olcDatabase={0}config,cn=config
olcDatabase: {0}config
olcRootPW:: e1NTSEF9c2VjcmV0

dn: olcDatabase={1}mdb,cn=config
olcDatabase: {1}mdb
olcDbDirectory: /srv/ldap
olcSuffix: dc=lale,dc=test
olcAccess: {0}to attrs=userPassword by self write by anonymous auth by * none
olcRootPW:: e1NTSEF9c2VjcmV0
olcReadOnly: TRUE

"""
DATA = """dn: dc=lale,dc=test
objectClass: organization
entryUUID: 1

dn:: dWlkPWbDrW9uYSxkYz1sYWxlLGRjPXRlc3Q=
uid: fiona
userPassword:: e1NTSEF9eA==
mail: a@lale.test
mail: b@lale.test
entryCSN: 1

"""


def test_entries_are_read_by_their_decoded_names() -> None:
    found = ldif.entries(DATA)
    assert list(found) == ["dc=lale,dc=test", "uid=fíona,dc=lale,dc=test"]
    assert ldif.entries(ldif.text(found)) == found
    assert ldif.entries("") == {}
    with pytest.raises(CommandExecutionError, match="no LDIF"):
        ldif.entries("olcSuffix: x")


def test_the_database_is_found_with_what_a_precheck_must_know() -> None:
    (row,) = ldif.databases(ldif.entries(CONFIG))
    assert (row["number"], row["backend"], row["suffix"]) == (1, "mdb", "dc=lale,dc=test")
    assert (row["directory"], row["read_only"], row["replica"]) == ("/srv/ldap", True, False)
    replica = CONFIG.replace("olcReadOnly: TRUE", "olcSyncrepl: {0}rid=1 provider=ldap://a")
    assert ldif.databases(ldif.entries(replica))[0]["replica"] is True


def test_a_configuration_comes_along_but_for_what_is_the_machine_s_own() -> None:
    found = ldif.entries(CONFIG)
    made = ldif.adapted(found, slapd.TLS, slapd.DATA)
    top, data = made["cn=config"], made["olcDatabase={1}mdb,cn=config"]
    assert "olcTLSCertificateFile: /etc/ssl/old.pem" not in top
    assert "olcTLSCertificateKeyFile: /etc/ldap/saltworks/tls.key" in top
    assert "olcDbDirectory: /var/lib/ldap" in data
    assert not any(line.startswith("olcReadOnly") for line in data)
    kept = ("olcSuffix", "olcAccess", "olcRootPW")
    found_data = found["olcDatabase={1}mdb,cn=config"]
    assert [line for line in data if line.startswith(kept)] == [
        line for line in found_data if line.startswith(kept)
    ]
    assert made["olcDatabase={0}config,cn=config"] == found["olcDatabase={0}config,cn=config"]
    # Adapting what is adapted is no other configuration: the two machines can be compared.
    assert ldif.differing(made, ldif.adapted(made, slapd.TLS, slapd.DATA)) == []


def test_equal_is_every_value_in_whatever_order() -> None:
    found = ldif.entries(DATA)
    turned = ldif.entries(
        DATA.replace("mail: a@lale.test\nmail: b@lale.test", "mail: b@lale.test\nmail: a@lale.test")
    )
    assert ldif.differing(found, turned) == []
    for old, new in (("e1NTSEF9eA==", "e1NTSEF9eQ=="), ("mail: a@lale.test\n", "")):
        changed = ldif.entries(DATA.replace(old, new))
        assert ldif.differing(found, changed) == ["uid=fíona,dc=lale,dc=test"]
    fewer = dict(list(found.items())[:1])
    assert ldif.differing(found, fewer) == ldif.differing(fewer, found) != []
    touched = ldif.entries(DATA.replace("entryCSN: 1", "entryCSN: 2"))
    assert ldif.differing(found, touched) != []
    assert ldif.differing(found, touched, slapd.TOUCHED) == []


class Slapd:
    """The module over a fake slapd: the databases that slapcat shows, and what is called."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.data = folder / "ldap"
        self.data.mkdir()
        (self.data / "data.mdb").write_text("old")
        self.config = ldif.text(ldif.entries(CONFIG.replace("/srv/ldap", str(self.data))))
        self.shown = DATA
        self.calls: list[str] = []
        self.fails = False
        pure = ("entries", "text", "databases", "adapted", "differing")
        salt = {f"slapd_ldif.{name}": getattr(ldif, name) for name in pure}
        self.module: Any = load("_modules", "slapd", {**salt, "transfer.pull": self._pull})
        monkeypatch.setattr(self.module, "_slapcat", lambda n: self.shown if n else self.config)
        monkeypatch.setattr(self.module, "_slapadd", self._slapadd)
        monkeypatch.setattr(self.module, "_systemctl", self.calls.append)
        active = type("Done", (), {"returncode": 0, "stdout": "active"})()
        monkeypatch.setattr(self.module, "_call", lambda *args, **more: active)
        self.opened = 0
        monkeypatch.setattr(self.module, "open_", self._open)
        self.fetched = DATA.replace("e1NTSEF9eA==", "e1NTSEF9eQ==")

    def _open(self) -> bool:
        self.opened += 1
        return True

    def _pull(self, source: str, folder: str, host: str, key: str, user: str) -> None:
        Path(folder).mkdir(exist_ok=True)
        (Path(folder) / "config.ldif").write_text(self.config)
        (Path(folder) / "data.ldif").write_text(self.fetched)

    def _slapadd(self, config: str, number: int, ldif: str, folder: str) -> None:
        if self.fails:
            (self.data / "data.mdb").write_text("half")
            raise CommandExecutionError("loading failed: no room")
        self.shown = ldif
        (self.data / "data.mdb").write_text("new")

    def take(self) -> dict[str, Any]:
        copy = str(self.folder / "copy")
        done = self.module.take(copy, "/there", "198.18.0.15", "/key", whole=False)
        assert isinstance(done, dict)
        return done


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slapd:
    return Slapd(tmp_path, monkeypatch)


def test_what_is_equal_is_not_loaded(fake: Slapd) -> None:
    fake.fetched = DATA
    done = fake.take()
    assert (done["loaded"], done["entries"], fake.calls) == (False, 2, [])
    # Whoever takes a directory uses it.
    assert fake.opened == 1


def test_what_differs_is_loaded_and_compared(fake: Slapd) -> None:
    done = fake.take()
    assert (done["loaded"], fake.calls) == (True, ["stop", "start"])
    assert (fake.data / "data.mdb").read_text() == "new"
    assert not Path(f"{fake.data}.aside").exists()
    assert fake.take()["loaded"] is False


def test_a_load_that_fails_leaves_the_directory_as_it_was(fake: Slapd) -> None:
    fake.fails = True
    with pytest.raises(CommandExecutionError, match="no room"):
        fake.take()
    assert fake.calls == ["stop", "start"]
    assert (fake.data / "data.mdb").read_text() == "old"


def test_a_load_that_died_is_done_again_and_the_old_one_is_still_there(fake: Slapd) -> None:
    aside = Path(f"{fake.data}.aside")
    aside.mkdir()
    (aside / "data.mdb").write_text("old")
    (fake.data / "data.mdb").write_text("half")
    fake.fails = True
    with pytest.raises(CommandExecutionError):
        fake.take()
    assert (fake.data / "data.mdb").read_text() == "old"
    fake.fails = False
    assert fake.take()["loaded"] is True


def test_what_is_not_equal_after_loading_is_named(
    fake: Slapd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake.module, "_slapadd", lambda *args: None)
    with pytest.raises(CommandExecutionError, match="1 entries are not equal here: uid=fíona"):
        fake.take()


# --- by TLS --------------------------------------------------------------------------------------


class Listener:
    """Something that speaks TLS on a port, with a certificate for `localhost`."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        now = datetime.now(UTC)
        authority, key = pki.make_authority("test", now)
        certificate, own = pki.issue(authority, key, names, now)
        self.authority = folder / "ca.pem"
        self.authority.write_text(authority)
        pem = folder / "own.pem"
        pem.write_text(certificate + own)
        self.server = http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.mark.parametrize(
    ("names", "trusted", "said"),
    [
        (["localhost"], True, "no LDAP server|does not answer"),
        (["elsewhere"], True, "certificate of .* is not to be trusted"),
        (["localhost"], False, "certificate of .* is not to be trusted"),
    ],
)
def test_a_wrong_certificate_is_told_from_a_server_that_is_away(
    tmp_path: Path, names: list[str], trusted: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Listener(tmp_path, names)
    module: Any = load("_modules", "slapd")
    monkeypatch.setattr(module, "PORT", listener.server.server_address[1])
    other = tmp_path / "other.pem"
    other.write_text(pki.make_authority("other", datetime.now(UTC))[0])
    authority = listener.authority if trusted else other
    try:
        with pytest.raises(CommandExecutionError, match=said):
            module.answers("localhost", str(authority), seconds=2)
    finally:
        listener.server.shutdown()
        listener.server.server_close()
    with pytest.raises(CommandExecutionError, match="does not answer"):
        module.answers("localhost", str(authority), seconds=2)
