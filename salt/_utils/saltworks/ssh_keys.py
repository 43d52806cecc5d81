"""ssh key pairs, as the secrets that hold them."""

from __future__ import annotations

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def pair(name: str) -> dict[str, str]:
    """A new key pair.

    :param name: the secrets are ``<name>_private`` and ``<name>_public``.
    """
    private = Ed25519PrivateKey.generate()
    return {
        f"{name}_private": private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        ).decode(),
        f"{name}_public": private.public_key()
        .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        .decode(),
    }
