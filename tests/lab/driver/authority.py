"""The lab's certificate authority, and the RSA keys of its minions."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from saltworks import pki

from .cache import locked
from .process import host
from .settings import Settings


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
        authority = (self._folder / "ca.pem").read_text()
        key = (self._folder / "ca.key").read_text()
        certificate, own_key = pki.issue(authority, key, names, datetime.now(UTC))
        return certificate + authority, own_key

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
        certificate, key = pki.make_authority("lab authority", datetime.now(UTC))
        (self._folder / "ca.key").write_text(key)
        (self._folder / "ca.key").chmod(0o600)
        # The last: when it is there, all is.
        (self._folder / "ca.pem").write_text(certificate)


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
