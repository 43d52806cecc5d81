"""The project's own authority and the machines' certificates, in the secrets file."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from saltworks import clustermap, pki
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.tree import Tree

__opts__: dict[str, Any]

AUTHORITY = ("pki_authority", "pki_authority_key")


@refusing
def issue(minion: str) -> bool:
    """A machine has a certificate of the project's authority; both are made if need be.

    One that ends soon, or has not the machine's names, is made anew; the machine's next
    state run takes it.

    :param minion: id of a declared machine.
    :returns: False when the one at hand serves.

    CLI Example:

    .. code-block:: bash

        salt-run pki.issue database
    """
    house = Tree.of(__opts__)
    cmap = house.map()
    if cmap is None or minion not in cmap["machines"]:
        raise Refused("pki", [Problem(minion, "is not declared", "name a machine of the map")])
    now = datetime.now(UTC)
    names = [minion, clustermap.address(cmap, minion)]
    vault = house.vault
    made: dict[str, str] = {}
    if set(AUTHORITY) <= set(vault.names()):
        authority, key = (vault.get(name) for name in AUTHORITY)
    else:
        authority, key = pki.make_authority(cmap["name"], now)
        made.update(zip(AUTHORITY, (authority, key), strict=True))
    own = (f"pki_{minion}", f"pki_{minion}_key")
    if made or not _serves(house, own, authority, names, now):
        made.update(zip(own, pki.issue(authority, key, names, now), strict=True))
    if made:
        vault.put(made)
    return bool(made)


def _serves(
    house: Tree, own: tuple[str, str], authority: str, names: list[str], now: datetime
) -> bool:
    if not set(own) <= set(house.vault.names()):
        return False
    return pki.serves(house.vault.get(own[0]), authority, names, now)
