"""The lab's certificate authority, and the RSA keys of its minions."""

from __future__ import annotations

import datetime
import shutil
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from .cache import locked
from .process import host
from .settings import Settings

YEARS = 10


@dataclass(frozen=True)
class Authority:
    """One authority for all labs of the host, so that a cached machine stays trusted."""

    settings: Settings

    @property
    def _folder(self) -> Path:
        return self.settings.cache / "ca"

    def up(self) -> Path:
        """Make the authority if missing and put its certificate at ``.lab/ca.pem``."""
        with locked(self.settings.cache / "locks" / "ca"):
            if not (self._folder / "ca.pem").exists():
                self._make()
        self.settings.root.mkdir(parents=True, exist_ok=True)
        shutil.copy(self._folder / "ca.pem", self.settings.ca)
        return self.settings.ca

    def issue(self, names: list[str]) -> tuple[str, str]:
        """A server certificate (with the authority's behind it) and its key, both PEM."""
        self.up()
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = x509.load_pem_x509_certificate((self._folder / "ca.pem").read_bytes())
        signer = serialization.load_pem_private_key((self._folder / "ca.key").read_bytes(), None)
        assert isinstance(signer, ec.EllipticCurvePrivateKey)
        certificate = (
            _builder(names[0], issuer.subject, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False
            )
            .add_extension(
                x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()),
                critical=False,
            )
            .sign(signer, hashes.SHA256())
        )
        chain = _pem(certificate) + _pem(issuer)
        return chain, _key_pem(key)

    def trust(self, root: Path) -> None:
        """Make a machine's root trust the authority, as update-ca-certificates would."""
        certificate = self.settings.ca.read_text()
        local = root / "usr/local/share/ca-certificates/saltworks-lab.crt"
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_text(certificate)
        store = root / "etc/ssl/certs"
        bundle = store / "ca-certificates.crt"
        if certificate not in bundle.read_text():
            with bundle.open("a") as file:
                file.write(certificate)
        named = host(["openssl", "x509", "-in", self.settings.ca, "-noout", "-subject_hash"])
        for link in (store / f"{named.stdout.strip()}.0", store / "saltworks-lab.pem"):
            link.unlink(missing_ok=True)
            link.symlink_to("/usr/local/share/ca-certificates/saltworks-lab.crt")

    def _make(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Saltworks lab authority")])
        certificate = (
            _builder("Saltworks lab authority", name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    key_cert_sign=True,
                    crl_sign=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .sign(key, hashes.SHA256())
        )
        (self._folder / "ca.key").write_text(_key_pem(key))
        (self._folder / "ca.key").chmod(0o600)
        (self._folder / "ca.pem").write_text(_pem(certificate))


def rsa_pair(folder: Path, name: str) -> tuple[bytes, bytes]:
    """Private and public key (PEM) called ``name``, kept in ``folder``, made if missing."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    if not (private.exists() and public.exists()):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        private.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        private.chmod(0o600)
        public.write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
    return private.read_bytes(), public.read_bytes()


def _builder(
    name: str, issuer: x509.Name, public: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
