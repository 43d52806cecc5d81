"""A request of each kind of worker, by which a machine shows through the front that it serves."""

from __future__ import annotations

from collections.abc import Mapping

from . import routing
from .worker_table import Table, table

#: One request for each group that serves any; ``{n}`` is another each time. None is let in: a
#: worker answers 401 or less, and changes nothing.
REQUESTS: Mapping[str, tuple[str, str]] = {
    "initial-sync": ("GET", "/_matrix/client/v3/sync?timeout={n}"),
    "sync": ("GET", "/_matrix/client/v3/sync?since=s{n}&timeout=0"),
    "sender": ("PUT", "/_matrix/client/v3/rooms/!{n}:saltworks.invalid/send/m.room.message/{n}"),
    "login": ("GET", "/_matrix/client/v3/login"),
    "user-directory": ("POST", "/_matrix/client/v3/user_directory/search"),
    "client": ("GET", "/_matrix/client/v3/joined_rooms"),
    "federation-in": ("GET", "/_matrix/federation/v1/event/${n}"),
    "media": ("GET", "/_matrix/client/v1/media/download/saltworks.invalid/{n}"),
    "typing": ("PUT", "/_matrix/client/v3/rooms/!{n}:saltworks.invalid/typing/@{n}:x"),
    "to_device": ("PUT", "/_matrix/client/v3/sendToDevice/m.dummy/{n}"),
    "receipts": ("POST", "/_matrix/client/v3/rooms/!{n}:saltworks.invalid/receipt/m.read/${n}"),
    "push_rules": ("PUT", "/_matrix/client/v3/pushrules/global/override/{n}"),
}


#: Who asks, another each time: what is balanced by user or by origin reaches every process. It is
#: no word of a server: without a signature nobody looks for its key.
USER, ORIGIN = "Bearer saltworks-{n}", "X-Matrix origin={n}.saltworks.invalid"


def of_kind(kind: str, known: Table | None = None) -> list[dict[str, str]]:
    """Requests that a kind's processes answer; none when no client or server asks it directly."""
    known = known or table()
    groups = [kind, *(row.name for row in known.streams.values() if row.writer == kind)]
    found = []
    for group in groups:
        if group not in REQUESTS:
            continue
        method, path = REQUESTS[group]
        endpoint = routing.matching(method, path, known)
        by_origin = endpoint is not None and endpoint.balance == "origin"
        found.append(
            {"method": method, "path": path, "authorization": ORIGIN if by_origin else USER}
        )
    return found
