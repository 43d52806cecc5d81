"""SCRAM verifiers as PostgreSQL has them, and our lines in somebody else's pg_hba.conf."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest

from tests.unit.modules.minion_modules import load

module = load("_modules", "saltworks_pgadmit")
THEIRS = "# theirs\nlocal all all peer\nhost all all 127.0.0.1/32 md5\n"


def test_a_verifier_is_the_one_of_rfc_7677() -> None:
    # Password, salt and iterations of the example in RFC 7677, section 3, and its server key.
    salt = base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ==")
    made = module.verifier("pencil", salt)
    assert made.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZ")
    assert made.endswith(":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=")


def test_a_password_fits_its_verifier_and_no_other() -> None:
    kept = module.verifier("one")
    assert kept != module.verifier("one")
    assert module.fits("one", kept)
    assert not module.fits("two", kept)
    for other in (None, "", "md5" + "0" * 32, "SCRAM-SHA-256$1:c2FsdA==$a:b"):
        assert not module.fits("one", other)


def test_our_lines_come_first_and_go_without_a_trace() -> None:
    ours = module.hba(THEIRS, ["hostssl replication us 127.0.0.1/32 scram-sha-256"])
    assert ours.splitlines()[1].startswith("hostssl replication us")
    assert ours.endswith(THEIRS)
    again = module.hba(ours, ["hostssl replication us 127.0.0.1/32 scram-sha-256"])
    assert again == ours
    other = module.hba(ours, ["hostssl all us 127.0.0.1/32 scram-sha-256"])
    assert other.count("Saltworks begin") == 1
    assert module.hba(other, []) == THEIRS
    assert module.hba(THEIRS, []) == THEIRS


def test_who_is_shut_out_stays_so_whatever_else_is_admitted() -> None:
    line = "hostssl chat us 127.0.0.1/32 scram-sha-256"
    shut = module.shut_hba(module.hba(THEIRS, [line]), "postgres", "us")
    assert shut.splitlines()[1:5] == [
        "local all postgres peer", line, "local all all reject", "host all all all reject",
    ]  # fmt: skip
    assert module.shut_hba(shut, "postgres", "us") == shut
    # Our other lines come behind, and the first that fits decides.
    wider = module.hba(shut, ["host all all all trust"])
    assert wider.index("host all all all reject") < wider.index("host all all all trust")
    assert module.hba(shut, []).startswith(module.SHUT_BEGIN)
    assert module.hba(module.shut_hba(shut, "", None), []) == THEIRS
    assert module.shut_hba(THEIRS, "", None) == THEIRS


def test_another_text_is_on_the_disk_before_anybody_relies_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    monkeypatch.setattr(
        "os.fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}"))
    )
    path = tmp_path / "pg_hba.conf"
    path.write_text("before")
    path.chmod(0o640)
    module._rewrite(str(path), "after")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("after", 0o640)
    # The file before it takes the other's place, and then the place itself.
    assert synced == [f"{path}.new", str(tmp_path)]
