"""An old cluster with a database of Synapse's shape, and a new one that is to replace it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tests.process import postgres, synapse_tables

Json = dict[str, Any]

ROLE = "saltworks_replication"
SECRET = "quite-secret"
QUICK = "wal_receiver_status_interval = 1s\nwal_retrieve_retry_interval = 200ms\n"


class Pair:
    """Both clusters, with the password that the new one copies the old one by."""

    def __init__(self, old: Json, new: Json, salt: Json) -> None:
        self.old, self.new, self.salt = old, new, salt
        self.passfile = f"{old['top']}/run/passfile"
        Path(self.passfile).write_text(f"*:*:*:{ROLE}:{SECRET}\n")
        os.chmod(self.passfile, 0o600)
        if os.geteuid() == 0:
            entry = salt["pgcluster.account"]("postgres")
            os.chown(self.passfile, entry.pw_uid, entry.pw_gid)

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return self.salt[name](*args, **kwargs)

    def way(self, to: Json) -> Json:
        return {
            "host": "127.0.0.1", "port": to["port"], "user": ROLE, "passfile": self.passfile,
            "sslmode": "disable",
        }  # fmt: skip

    def sql(self, at: Json, script: str) -> str:
        return postgres.psql(at, script, "synapse")

    def say(self, at: Json, number: int) -> None:
        self.sql(at, synapse_tables.event(number))

    def events(self, at: Json) -> int:
        return int(self.sql(at, "SELECT count(*) FROM events"))
