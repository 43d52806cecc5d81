"""Encryption keys of the seeded devices: made from their names, really signed."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from tests.lab.client import CLIENT, UNSTABLE, Client, proven

Json = dict[str, Any]

ONE_TIME_KEYS = 20
BACKED_UP_SESSIONS = 50
ALGORITHMS = ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"]


def _secret(*names: str) -> bytes:
    return hashlib.sha256("/".join(("lale", *names)).encode()).digest()


def encode_base64(data: bytes) -> str:
    """Base64 without padding, as Matrix writes it."""
    return base64.b64encode(data).decode().rstrip("=")


def sign_json(body: Json, user: str, key: Ed25519PrivateKey, key_id: str) -> Json:
    """The body with one more signature (Matrix specification, appendix "Signing JSON")."""
    signed = {name: value for name, value in body.items() if name not in ("signatures", "unsigned")}
    canonical = json.dumps(signed, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    signatures = {name: dict(value) for name, value in body.get("signatures", {}).items()}
    signatures.setdefault(user, {})[f"ed25519:{key_id}"] = encode_base64(
        key.sign(canonical.encode())
    )
    return {**body, "signatures": signatures}


def signing_key(*names: str) -> Ed25519PrivateKey:
    """An ed25519 key that is always the same for the same names."""
    return Ed25519PrivateKey.from_private_bytes(_secret("ed25519", *names))


def public(key: Ed25519PrivateKey | X25519PrivateKey) -> str:
    """The public half, in the base64 of Matrix."""
    return encode_base64(key.public_key().public_bytes_raw())


def curve25519(*names: str) -> str:
    """The public half of a curve25519 key that is always the same for the same names."""
    return public(X25519PrivateKey.from_private_bytes(_secret("curve25519", *names)))


def device_keys(user: str, device: str) -> Json:
    """The signed identity keys of a device."""
    key = signing_key(user, device)
    keys = {
        "user_id": user,
        "device_id": device,
        "algorithms": ALGORITHMS,
        "keys": {
            f"curve25519:{device}": curve25519(user, device),
            f"ed25519:{device}": public(key),
        },
    }
    return sign_json(keys, user, key, device)


def upload_device(client: Client) -> None:
    """Uploads identity, one-time and fallback keys of the device that is logged in."""
    user, device = str(client.user_id), str(client.device_id)
    key = signing_key(user, device)

    def signed(name: str, **extra: Any) -> Json:
        return sign_json({"key": curve25519(user, device, name), **extra}, user, key, device)

    client.keys_upload(
        device_keys=device_keys(user, device),
        one_time_keys={
            f"signed_curve25519:AAAA{number:02d}": signed(f"otk{number}")
            for number in range(ONE_TIME_KEYS)
        },
        # The name under which 1.40 knows the fallback key; later releases take both.
        **{
            "org.matrix.msc2732.fallback_keys": {
                "signed_curve25519:FALLBACK": signed("fallback", fallback=True)
            }
        },
    )


def sign_as(body: Json, user: str, usage: str) -> Json:
    """The body signed by the user's key of that usage, whose id is the public key itself."""
    key = signing_key(user, usage)
    return sign_json(body, user, key, public(key))


def cross_signing_key(user: str, usage: str) -> Json:
    """The public form of a master, self_signing or user_signing key.

    All but the master are signed by the master.
    """
    name = public(signing_key(user, usage))
    body = {"user_id": user, "usage": [usage], "keys": {f"ed25519:{name}": name}}
    return body if usage == "master" else sign_as(body, user, "master")


def upload_cross_signing(client: Client, password: str, devices: list[str]) -> None:
    """Uploads the three cross-signing keys, and signs the user's own devices with them."""
    user = str(client.user_id)
    body = {
        f"{usage}_key": cross_signing_key(user, usage)
        for usage in ("master", "self_signing", "user_signing")
    }
    proven(client, "POST", f"{UNSTABLE}/keys/device_signing/upload", body, password)
    signatures: Json = {
        device: sign_as(device_keys(user, device), user, "self_signing") for device in devices
    }
    first = signing_key(user, devices[0])
    signatures[public(signing_key(user, "master"))] = sign_json(
        cross_signing_key(user, "master"), user, first, devices[0]
    )
    _upload_signatures(client, {user: signatures})


def verify_user(client: Client, other: str) -> None:
    """Signs another user's master key, as after comparing emoji."""
    body = sign_as(cross_signing_key(other, "master"), str(client.user_id), "user_signing")
    _upload_signatures(client, {other: {public(signing_key(other, "master")): body}})


def _upload_signatures(client: Client, signatures: Json) -> None:
    answer = client.request("POST", f"{UNSTABLE}/keys/signatures/upload", signatures)
    if answer.get("failures"):
        raise RuntimeError(f"signatures of {client.user_id} refused: {answer['failures']}")


def make_backup(client: Client, rooms: list[str]) -> str:
    """Makes a key backup with sessions spread over rooms; returns its version."""
    user = str(client.user_id)
    auth = {"public_key": curve25519(user, "backup")}
    version = client.request(
        "POST",
        f"{CLIENT}/room_keys/version",
        {
            "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
            "auth_data": sign_as(auth, user, "master"),
        },
    )["version"]
    content: Json = {}
    for number in range(BACKED_UP_SESSIONS):
        sessions = content.setdefault(rooms[number % len(rooms)], {"sessions": {}})["sessions"]
        sessions[encode_base64(_secret(user, "session", str(number)))] = {
            "first_message_index": number,
            "forwarded_count": number % 3,
            "is_verified": number % 2 == 0,
            "session_data": {
                "ciphertext": encode_base64(_secret(user, "ciphertext", str(number)) * 4),
                "ephemeral": curve25519(user, "ephemeral", str(number)),
                "mac": encode_base64(_secret(user, "mac", str(number))[:8]),
            },
        }
    path = f"{CLIENT}/room_keys/keys"
    client.request("PUT", path, {"rooms": content}, params={"version": version})
    return str(version)


def waiting_messages(sender: Client, user: str, device: str, count: int) -> None:
    """Sends to-device messages that wait for a device which does not sync."""
    for number in range(count):
        content = {
            "algorithm": "m.olm.v1.curve25519-aes-sha2",
            "sender_key": curve25519(str(sender.user_id), str(sender.device_id)),
            "ciphertext": {
                curve25519(user, device): {
                    "type": number % 2,
                    "body": encode_base64(_secret(user, device, str(number)) * 3),
                }
            },
            "number": number,
        }
        sender.to_device("m.room.encrypted", {user: {device: content}})
