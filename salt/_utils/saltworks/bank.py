"""What runners write and the external pillar reads: a ``salt.cache`` bank.

State runs compile the pillar on the master each time, so what a runner wrote is
in the very next render; nothing a minion says ends up here unchecked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

BANK = "saltworks"


class Store(Protocol):
    """The part of ``salt.cache.Cache`` that is used."""

    def fetch(self, bank: str, key: str) -> Any: ...

    def store(self, bank: str, key: str, data: Any) -> None: ...


def read(store: Store, key: str) -> dict[str, Any]:
    """One record, empty when it was never written."""
    row = store.fetch(BANK, key)
    return dict(row) if isinstance(row, Mapping) else {}


def write(store: Store, key: str, row: Mapping[str, Any]) -> None:
    """Replace one record."""
    store.store(BANK, key, dict(row))


def update(store: Store, key: str, **values: Any) -> dict[str, Any]:
    """Change some values of one record; the whole record as it is then."""
    row = {**read(store, key), **values}
    write(store, key, row)
    return row
