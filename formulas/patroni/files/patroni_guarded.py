#!/usr/bin/python3
"""Patroni, with one mistake of its release 3.0.2 put right.

A leader that stood still for longer than its key lived gets a new lease, and then writes the key
again whoever has it by now: the one that was promoted meanwhile is demoted, and what it had
acknowledged is rewound. Here the key is written only if it is still as it was read. Patroni itself
does so since 3.0.3: https://github.com/patroni/patroni/pull/2689
"""

from __future__ import annotations

import sys
import time
from typing import Any

from patroni.__main__ import main
from patroni.version import __version__

BROKEN = "3.0.2"


def _update_leader(self: Any) -> bool:
    """In place of ``Etcd3._update_leader``; answers whether the key is ours."""
    from patroni.dcs import Leader
    from patroni.dcs.etcd3 import Etcd3Error

    copy = self._retry.copy()

    def retry(*args: Any, **words: Any) -> Any:
        words["retry"] = copy
        return copy(*args, **words)

    self._run_and_handle_exceptions(self._do_refresh_lease, True, retry=retry)
    leader = self.cluster and self.cluster.leader
    known = isinstance(leader, Leader)
    if not self._lease or (known and leader.session == self._lease):
        return bool(self._lease)
    if known and leader.name != self._name:
        return False
    # No longer than Patroni's own: whoever has lost his key must have stepped down in time.
    copy.deadline = copy.stoptime - time.time()
    if copy.deadline < 1:
        raise Etcd3Error("update_leader timeout")
    # None is there: then it is made, if that is still so.
    still = {"mod_revision": leader.index} if known else {"create_revision": 0}
    put = self._client.put
    return bool(
        self._run_and_handle_exceptions(
            put, self.leader_path, self._name, self._lease, retry=retry, **still
        )
    )


if __name__ == "__main__":
    if __version__ == BROKEN:
        # Private names: a later release need not have them.
        from patroni.dcs.etcd import catch_return_false_exception
        from patroni.dcs.etcd3 import Etcd3

        Etcd3._update_leader = catch_return_false_exception(_update_leader)
    sys.exit(main())
