"""The public certificate before a milestone: the right one, with its key, and for long enough."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from saltworks import precheck_certificate
from saltworks.precheck_facts import Facts, Survey
from saltworks.vault import Vault

NOW = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
NAME = "chat.lale.test"
MAP = {"public": {"name": NAME}}


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(
    *names: str,
    of: ec.EllipticCurvePrivateKey | None = None,
    days: float = 90,
    since: float = -1,
) -> str:
    """A certificate in PEM, valid from and until so many days from now."""
    private = of or key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, NAME)])
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW + datetime.timedelta(days=since))
        .not_valid_after(NOW + datetime.timedelta(days=days))
    )
    if names:
        rows = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        made = made.add_extension(rows, critical=False)
    pem = made.sign(private, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    return pem.decode()


def pem_of(private: ec.EllipticCurvePrivateKey, passphrase: bytes | None = None) -> str:
    closing: Any = serialization.NoEncryption()
    if passphrase:
        closing = serialization.BestAvailableEncryption(passphrase)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, closing
    return private.private_bytes(*form).decode()


def looked_at(pem: str, fits: bool = True, done: bool = False, cmap: Any = MAP) -> Survey:
    made = Survey()
    row = {"pem": pem, "key_fits": fits}
    facts = Facts(cmap=cmap, schema={}, certificate=row, now=NOW.timestamp())
    precheck_certificate.check(made, facts, done=done)
    assert all("secret.put tls_certificate <file>" in row.next_step for row in made.problems)
    return made


def said(*given: Any, **words: Any) -> str:
    return "\n".join(map(str, looked_at(*given, **words).problems))


def test_a_good_certificate_is_no_problem() -> None:
    made = looked_at(certificate("www.lale.test", NAME))
    assert (made.problems, made.notes, made.checks) == ([], [], 5)
    # Without a good map there is no name to compare; the rest is said all the same.
    assert said(certificate(), cmap=None) == ""
    assert "expired" in said(certificate(days=-0.5), cmap={"public": "chat"})


def test_without_a_certificate_nothing_is_looked_at() -> None:
    made = Survey()
    precheck_certificate.check(made, Facts(cmap=MAP, schema={}), done=False)
    assert (made.checks, made.problems) == (0, [])


@pytest.mark.parametrize("pem", ["", "no certificate", pem_of(key())])
def test_what_is_no_certificate_is_one_problem(pem: str) -> None:
    assert len(looked_at(pem, fits=False).problems) == 1
    assert "is no certificate in PEM" in said(pem, fits=False)


def test_everything_wrong_with_it_is_said_at_once() -> None:
    text = said(certificate("lale.test", days=-0.5), fits=False)
    assert "tls_key is not the key of its first certificate" in text
    assert f"is for lale.test, not for {NAME}" in text
    assert "expired on 2026-04-30 12:00 UTC" in text
    # Browsers and homeservers have stopped to look at the common name.
    assert "is for no name" in said(certificate())
    assert "is not valid before 2026-05-03" in said(certificate(NAME, since=2))


@pytest.mark.parametrize(
    ("name", "good"),
    [
        (NAME, True),
        ("CHAT.Lale.test", True),
        ("*.lale.test", True),
        ("*.test", False),
        ("*.chat.lale.test", False),
        ("at.lale.test", False),
        ("*", False),
    ],
)
def test_names_that_cover_the_public_one(name: str, good: bool) -> None:
    assert precheck_certificate.covers([name], NAME) is good
    assert (said(certificate(name)) == "") is good


def test_an_end_that_is_near_is_a_problem_before_and_a_note_after() -> None:
    assert said(certificate(NAME, days=14.1)) == ""
    near = certificate(NAME, days=13.2)
    assert "expires in 13 days, on 2026-05-14" in said(near)
    made = looked_at(near, done=True)
    assert (len(made.problems), len(made.notes)) == (0, 1)
    assert "expired" in said(certificate(NAME, days=-0.5), done=True)


def test_the_vault_says_whether_the_key_fits_and_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = key()
    chain = certificate(NAME, of=right) + certificate("ca.lale.test")
    secrets = {
        "crt": chain,
        "bad": "no certificate",
        "right": pem_of(right),
        "other": pem_of(key()),
        "closed": pem_of(right, b"passphrase"),
        "broken": "-----BEGIN PRIVATE KEY-----",
    }
    vault = Vault(tmp_path / "secrets.sls", tmp_path)
    monkeypatch.setattr(vault, "get", secrets.__getitem__)
    answers = {name: vault.key_fits("crt", name) for name in ("right", "other", "closed", "broken")}
    assert answers == {"right": True, "other": False, "closed": False, "broken": False}
    assert vault.key_fits("bad", "right") is False
