"""A replication row that Synapse 1.163.2 loses by itself, and the way round it.

It has nothing to do with standbys. ``Stream.get_updates`` sends nothing, and goes on to the current
token, if the local writer's *minimal* token is not above what was sent last. While another id is
being allocated, ``MultiWriterIdGenerator`` advances its current token past ids that have finished,
but not its minimal token. A poke in that moment skips their rows for good: the other processes
never hear of them, and keep a stale cache entry until it is written again.

The way round: an id of this process that has finished, and that the current token has passed,
counts for the minimal token as well. So the rows are read and sent, as at any other time.
"""

from __future__ import annotations

import hashlib
import inspect
import logging

from synapse.storage.util.id_generators import MultiWriterIdGenerator

logger = logging.getLogger(__name__)

#: SHA-256 of the method's source that this was written for; another is left alone.
KNOWN = "cbe8edffdcec4e22008fa2819d053fcaee5ae23415fc18c146ebf54898ae3a8e"


def minimal_token(self: MultiWriterIdGenerator) -> int:
    """In the place of ``get_minimal_local_current_token``."""
    with self._lock:
        minimal = self._current_positions.get(self._instance_name, self._persisted_upto_position)
        passed = self._max_position_of_local_instance
        finished = max((each for each in self._finished_ids if each <= passed), default=minimal)
        token: int = self._return_factor * max(minimal, finished)
        return token


def close() -> bool:
    """Put it in place in this process; False, and a line in the log, if Synapse is another one."""
    method = MultiWriterIdGenerator.get_minimal_local_current_token
    found = hashlib.sha256(inspect.getsource(method).encode()).hexdigest()
    if found != KNOWN:
        logger.error(
            "standby reads: close_replication_gap is not for this Synapse: "
            "MultiWriterIdGenerator.get_minimal_local_current_token is another one; see whether "
            "the release has closed the gap itself, and take the option out"
        )
        return False
    MultiWriterIdGenerator.get_minimal_local_current_token = minimal_token
    return True
