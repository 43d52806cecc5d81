"""The master's store of minion keys: exact ids only, never a glob."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import salt.key
from salt.utils.crypt import pem_finger

from .errors import Problem, Refused
from .invites import MINION, fingerprint
from .join_machine import plain

#: Salt's names of the states, in the form that its key functions take.
PENDING, ACCEPTED = "minions_pre", "minions"


@dataclass(frozen=True)
class Key:
    """A minion's key, as the master has it.

    :param state: what the master made of it.
    :param public: the public key.
    """

    state: Literal["pending", "accepted", "rejected"]
    public: str

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)


class Keys:
    """The store.

    :param opts: the master's options.
    """

    def __init__(self, opts: Mapping[str, Any]) -> None:
        self._opts = dict(opts)

    def get(self, minion: str) -> Key | None:
        """A minion's key, None when there is none.

        :raises Refused: the id is none of ours.
        """
        _exact(minion)
        with self._store() as keys:
            row = keys.cache.fetch("keys", minion)
        return Key(row["state"], plain(row["pub"])) if row else None

    def fingerprints(self, minions: Collection[str]) -> dict[str, str]:
        """Of the accepted keys of some minions."""
        found = {}
        with self._store() as keys:
            for minion in minions:
                _exact(minion)
                row = keys.cache.fetch("keys", minion)
                if row and row["state"] == "accepted":
                    found[minion] = fingerprint(row["pub"])
        return found

    def put_pending(self, minion: str, public: str) -> None:
        """A public key waits under an id, in place of another one that waits there."""
        _exact(minion)
        with self._store() as keys:
            keys.cache.store("keys", minion, {"pub": plain(public), "state": "pending"})

    def accept(self, minion: str) -> None:
        """Accept the key that waits under an id."""
        _exact(minion)
        with self._store() as keys:
            keys.accept(match_dict={PENDING: [minion]})

    def remove(self, minion: str) -> None:
        """Remove an accepted key; its minion can do nothing any more."""
        _exact(minion)
        with self._store() as keys:
            keys.delete_key(match_dict={ACCEPTED: [minion]}, revoke_auth=True)

    def master_finger(self) -> str:
        """Fingerprint of the master's own key, as ``master_finger`` of minions has it.

        :raises Refused: the master has no key yet.
        """
        own = f"{self._opts['id'].removesuffix('_master')}.pub"
        with self._store() as keys:
            # Salt 3008 names it after the master; before its first start it has the old name.
            public = [keys.cache.fetch("master_keys", name) for name in (own, "master.pub")]
        found = next(filter(None, public), None)
        if found is None:
            where = f"{self._opts['pki_dir']}/{own}"
            raise Refused("invite", [Problem(where, "is not there", "start salt-master")])
        # Minions hash what is between the lines BEGIN and END, as Salt does with a file; of a
        # text, which is what ``salt-key -F`` gives it, Salt hashes all.
        body = "".join(plain(found).splitlines(keepends=True)[1:-1])
        return str(pem_finger(key=body.encode(), sum_type=self._opts["hash_type"]))

    @contextlib.contextmanager
    def _store(self) -> Iterator[Any]:
        with salt.key.get_key(dict(self._opts)) as keys:
            yield keys


def _exact(minion: str) -> None:
    if not MINION.fullmatch(minion):
        what = "is no id that could be a member's"
        raise Refused("keys", [Problem(repr(minion[:64]), what, "use salt-key for it")])
