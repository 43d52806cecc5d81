"""Machines that speak to a master: one with no key of it, and a minion that lies.

Both speak Salt's own protocol over its own channel; neither runs a minion.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import salt.channel.client
import salt.config
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from salt.exceptions import SaltException
from saltworks import join_machine

from tests.process.house import House

#: How long the master may take for one answer, in seconds.
ANSWER_SECONDS = 60


@dataclass(frozen=True)
class Stranger:
    """A machine with a key pair that the master does not know.

    :param public_key: its public key, PEM.
    """

    public_key: str

    @classmethod
    def fresh(cls) -> Stranger:
        made = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
        form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return cls(made.public_bytes(*form).decode())

    def proof(self, secret: str, minion: str) -> str:
        return join_machine.proof_of(secret, minion, self.public_key)

    def payload(self, minion: str, grains: Mapping[str, Any] | None) -> dict[str, Any]:
        """What a minion sends to authenticate itself."""
        return {
            "cmd": "_auth",
            "id": minion,
            "nonce": uuid.uuid4().hex,
            "pub": self.public_key,
            "enc_algo": "OAEP-SHA1",
            "sig_algo": "PKCS1v15-SHA1",
            **({"autosign_grains": dict(grains)} if grains is not None else {}),
        }


class Wire:
    """Salt's channel to a master, without a key."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def asks(self, who: Stranger, minion: str, proof: Any = None, **more: Any) -> None:
        """A machine authenticates itself as a minion; it is not waited for the outcome."""
        grains = {**({"join_proof": proof} if proof is not None else {}), **more}
        payload = who.payload(minion, grains or None)
        self._channel.send(payload, timeout=ANSWER_SECONDS, tries=1)


@contextlib.contextmanager
def wire(house: House, folder: Path) -> Iterator[Wire]:
    """A channel of a machine that has no key of the master's."""
    opts = _opts(house)
    opts.update(id="nobody", pki_dir=str(folder))
    with salt.channel.client.ReqChannel.factory(opts, crypt="clear") as channel:
        yield Wire(channel)


class Liar:
    """The accepted minion, with what it asks the master for and fires onto its event bus."""

    def __init__(self, house: House, channel: Any) -> None:
        self._minion = house.minion.id
        self._channel = channel

    def pillar_of(self, minion: str) -> str:
        """What the master answers when the minion asks for a pillar in somebody's name."""
        load = {
            "cmd": "_pillar", "id": minion, "grains": {"id": minion}, "saltenv": "base",
            "pillarenv": None, "pillar_override": {}, "extra_minion_data": {}, "ver": "2",
        }  # fmt: skip
        # The channel would put its own id over what is asked.
        self._channel.obj.opts["id"] = minion
        try:
            return str(
                self._channel.crypted_transfer_decode_dictentry(
                    load, dictkey="pillar", timeout=ANSWER_SECONDS, tries=1
                )
            )
        except (SaltException, ValueError, TypeError, KeyError) as error:
            return f"refused: {error!r}"
        finally:
            self._channel.obj.opts["id"] = self._minion

    def fires(self, *events: tuple[str, Mapping[str, Any]]) -> None:
        """Events, tag and body, as they are: nothing in them says who they are from."""
        rows = [{"tag": tag, "data": dict(body)} for tag, body in events]
        payload = {"cmd": "_minion_event", "id": self._minion, "events": rows}
        self._channel.send(payload, timeout=ANSWER_SECONDS, tries=1)


@contextlib.contextmanager
def liar(house: House) -> Iterator[Liar]:
    """A channel with the accepted minion's own key."""
    with salt.channel.client.ReqChannel.factory(_opts(house)) as channel:
        yield Liar(house, channel)


def _opts(house: House) -> dict[str, Any]:
    opts: dict[str, Any] = salt.config.minion_config(
        str(Path(house.minion.config_dir) / "minion"), cache_minion_id=False
    )
    opts["master_uri"] = f"tcp://{opts['master'] or '127.0.0.1'}:{opts['master_port']}"
    return opts
