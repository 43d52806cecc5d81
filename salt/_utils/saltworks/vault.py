"""Secrets at rest: one GPG message a secret in ``pillar/secrets.sls``.

The file has the form of Salt's gpg renderer, so it can be read by hand the usual
way; here each message is decrypted alone, so that compiling one machine's pillar
opens only that machine's secrets.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import gnupg  # type: ignore[import-untyped]
import yaml
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from .errors import Problem, Refused

HEADER = "#!yaml|gpg\n# One GPG message a secret; salt-run secret.put changes one.\n"
RECIPIENT = "Synapse Saltworks <saltworks@localhost>"


class _Block(str):
    """A string dumped as a literal block."""


def _block(dumper: yaml.SafeDumper, text: _Block) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|")


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Block, _block)


class Vault:
    """The secrets file and the keyring that opens it.

    :param path: ``pillar/secrets.sls``; it may not exist yet.
    :param keyring: GPG home, Salt's default is ``/etc/salt/gpgkeys``.
    """

    def __init__(self, path: Path, keyring: Path) -> None:
        self.path = path
        self.keyring = keyring
        self._messages: dict[str, str] | None = None

    def names(self) -> list[str]:
        """Names of the secrets at hand."""
        return sorted(self._read())

    def get(self, name: str) -> str:
        """Decrypt one secret.

        :raises Refused: when it is missing, or the keyring cannot open it.
        """
        message = self._read().get(name)
        if message is None:
            raise Refused(
                "secrets",
                [
                    Problem(
                        str(self.path),
                        f"the secret {name} is missing",
                        f"salt-run secret.put {name} <file>",
                    )
                ],
            )
        opened = self._gpg().decrypt(message)
        if not opened.ok:
            raise Refused(
                "secrets",
                [
                    Problem(
                        str(self.path),
                        f"the secret {name} cannot be decrypted: {opened.status}",
                        f"restore the key that {self.keyring} held when it was written",
                    )
                ],
            )
        return str(opened)

    def key_fits(self, certificate: str, key: str) -> bool:
        """Whether a secret is the private key of another, a certificate; nothing else of it.

        :param certificate: name of the secret with the certificate, its chain behind it.
        :param key: name of the secret with the key, which no passphrase may close.
        :raises Refused: when one is missing, or the keyring cannot open it.
        """
        pem, closed = self.get(certificate), self.get(key)
        try:
            wanted = x509.load_pem_x509_certificates(pem.encode())[0].public_key()
            found = load_pem_private_key(closed.encode(), None).public_key()
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return False
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        return wanted.public_bytes(*form) == found.public_bytes(*form)

    def put(self, secrets: Mapping[str, str]) -> None:
        """Encrypt and store secrets, keeping the others; atomic, mode 0600.

        :raises Refused: when GPG cannot encrypt.
        """
        messages = dict(self._read())
        gpg = self._gpg(create=True)
        for name, text in secrets.items():
            closed = gpg.encrypt(text, self._fingerprint(gpg), always_trust=True)
            if not closed.ok:
                raise Refused(
                    "secrets",
                    [
                        Problem(
                            str(self.keyring),
                            f"cannot encrypt {name}: {closed.status}",
                            "check that gpg runs here and that the keyring is root's, mode 0700",
                        )
                    ],
                )
            messages[name] = str(closed)
        body = {"secrets": {name: _Block(messages[name]) for name in sorted(messages)}}
        text = HEADER + yaml.dump(body, Dumper=_Dumper, sort_keys=False)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=".secrets-")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
        os.replace(temporary, self.path)
        self._messages = messages

    def _read(self) -> dict[str, str]:
        if self._messages is None:
            text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            loaded = yaml.safe_load(text) or {}
            self._messages = dict(loaded.get("secrets", {}))
        return self._messages

    def _gpg(self, create: bool = False) -> gnupg.GPG:
        if create:
            self.keyring.mkdir(mode=0o700, parents=True, exist_ok=True)
        return gnupg.GPG(gnupghome=str(self.keyring))

    def _fingerprint(self, gpg: gnupg.GPG) -> str:
        held = gpg.list_keys(secret=True)
        if held:
            return str(held[0]["fingerprint"])
        name, _, mail = RECIPIENT.partition(" <")
        made = gpg.gen_key(
            gpg.gen_key_input(
                name_real=name,
                name_email=mail.rstrip(">"),
                key_type="RSA",
                key_length=3072,
                no_protection=True,
                expire_date=0,
            )
        )
        if not made.fingerprint:
            raise Refused(
                "secrets",
                [
                    Problem(
                        str(self.keyring),
                        f"cannot make a key: {made.stderr}",
                        "install gnupg and gpg-agent",
                    )
                ],
            )
        return str(made.fingerprint)
