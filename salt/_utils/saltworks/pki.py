"""The project's own certificate authority: pure functions from keys to certificates.

Certificates between machines (PostgreSQL, LDAP, S3), never for the public name. RFC 5280.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

#: For how long the authority, and a machine's certificate, hold.
AUTHORITY_DAYS, MACHINE_DAYS = 3650, 825

#: A certificate with fewer days left is made anew.
RENEW_DAYS = 90

#: Clocks of machines may be behind the master's.
EARLIER = timedelta(hours=1)


def make_authority(name: str, now: datetime) -> tuple[str, str]:
    """A new authority: certificate and private key, PEM.

    :param name: of the cluster, for its subject.
    :param now: UTC.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Saltworks {name}")])
    made = (
        _builder(subject, subject, now, AUTHORITY_DAYS)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _pem(made), _key_pem(key)


def issue(
    authority: str, authority_key: str, names: Sequence[str], now: datetime
) -> tuple[str, str]:
    """A certificate for a machine, server and client: certificate and private key, PEM.

    :param authority: certificate of the authority, PEM.
    :param authority_key: its key, PEM.
    :param names: DNS names and IP addresses; the first is the subject.
    :param now: UTC.
    """
    issuer = x509.load_pem_x509_certificate(authority.encode())
    signer = load_pem_private_key(authority_key.encode(), None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    made = (
        _builder(subject, issuer.subject, now, MACHINE_DAYS)
        .public_key(key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([_general(name) for name in names]), critical=False
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
            critical=False,
        )
        .sign(signer, hashes.SHA256())
    )
    return _pem(made), _key_pem(key)


def serves(certificate: str, authority: str, names: Sequence[str], now: datetime) -> bool:
    """Whether a certificate is the authority's, holds long enough, and has these names."""
    try:
        found = x509.load_pem_x509_certificate(certificate.encode())
        issuer = x509.load_pem_x509_certificate(authority.encode())
        found.verify_directly_issued_by(issuer)
        alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception: 
        return False
    has = {str(general.value) for general in alternative}
    left = found.not_valid_after_utc - now
    return left > timedelta(days=RENEW_DAYS) and set(names) <= has


def _builder(
    subject: x509.Name, issuer: x509.Name, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now.astimezone(UTC) - EARLIER)
        .not_valid_after(now.astimezone(UTC) + timedelta(days=days))
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
