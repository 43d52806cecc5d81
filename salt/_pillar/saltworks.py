"""External pillar: each machine gets its slice of the plan, the master the plan itself.

.. code-block:: yaml

    ext_pillar:
      - saltworks:
          root: /srv/saltworks
          records: /var/lib/saltworks  # the default

Reading only: rendering a pillar never changes anything.
"""

from __future__ import annotations

from typing import Any

from saltworks import tree

__virtualname__ = "saltworks"


def __virtual__() -> str:
    return __virtualname__


def ext_pillar(
    minion_id: str, pillar: dict[str, Any], root: str, records: str = tree.RECORDS
) -> dict[str, Any]:
    """The slice of a minion, empty for one that the cluster map does not name.

    :param root: folder of the tree in use.
    :param records: folder of what the runners write down.
    :raises saltworks.errors.Refused: the map or a secret cannot be read; Salt then
        hands out no pillar, so nothing is rendered from half of it.
    """
    house = tree.Tree(root, __opts__, records)  # type: ignore[name-defined]
    if minion_id == house.master_minion:
        return house.master_slice()
    return house.slice(minion_id)
