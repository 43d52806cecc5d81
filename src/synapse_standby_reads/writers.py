"""Which interactions go to the primary at once: those that write, and those that must not move."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

#: Interactions, by description, that only the primary may serve. The event fetcher fills a cache
#: that no invalidation guards: the time in which it can be filled with an event that is just being
#: redacted would grow by the wait for the standby.
PRIMARY_ONLY = frozenset({"do_fetch"})

#: Functions of Synapse's that write, by name.
STATIC = re.compile(r"^DatabasePool\.simple_(insert|upsert|update|delete)")

#: What a standby would not refuse and yet answer wrongly: a sequence is ahead by up to 32 there,
#: and locks of a standby hold nobody. Sent to the primary by its text.
WRONG_TEXT = re.compile(r"last_value|nextval|setval|currval|advisory|lock\s+table", re.IGNORECASE)

#: SQLSTATEs by which a standby says that this is not for it: read-only transaction, feature not
#: supported (unlogged tables), object not in prerequisite state, privilege, internal (lo_create).
WRITE_CODES = frozenset({"25006", "0A000", "55000", "42501", "XX000"})

#: Descriptions of interactions that were seen to write, whatever function they run: learning each
#: would cost every process one attempt. It need not be complete.
SEED = frozenset({
    "_load_next_mult_id",
    "MultiWriterIdGenerator._update_table",
    "_reap_stale_read_write_locks",
    "_rotate_notifs",
    "_set_room_participation_txn",
    "add_device_change_to_stream",
    "add_push_actions_to_staging",
    "add_room_account_data",
    "add_user_account_data",
    "check_state_groups_and_bump_deletion",
    "delete_messages_for_device_between",
    "get_and_clear_connection_positions",
    "get_max_allocated_token",
    "insert_linearized_receipt",
    "mark_state_groups_as_persisting",
    "persist_events",
    "persist_per_connection_state",
    "reap_monthly_active_users",
    "register_user",
    "send_invalidation_to_replication",
    "set_e2e_device_keys",
    "store_state_group.insert_delta_group",
    "store_state_group.insert_full_state",
    "try_acquire_read_write_lock",
    "update_client_ips",
    "upsert_monthly_active_user",
})


def name_of(func: Callable[..., Any]) -> str:
    """A function's name; of a partial or an instance, that of its type."""
    return str(getattr(func, "__qualname__", type(func).__qualname__))


class Writers:
    """Interactions that write, the learnt ones with them: by description and function."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._learnt: frozenset[tuple[str, str]] = frozenset()

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key[0] in SEED or key in self._learnt or STATIC.match(key[1]) is not None

    def learn(self, key: tuple[str, str]) -> bool:
        """Remember one; False if it was known."""
        with self._lock:
            if key in self._learnt:
                return False
            self._learnt |= {key}
            return True

    def __len__(self) -> int:
        return len(self._learnt)
