"""SCRAM verifiers as PostgreSQL has them, and our lines in somebody else's pg_hba.conf."""

from __future__ import annotations

import base64

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
