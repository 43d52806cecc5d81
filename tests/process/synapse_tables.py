"""A few of Synapse's tables, enough for what a backup looks at, and a stand-in release.

The real releases migrate real databases in the lab; here the point is what this
project's own code does before, between and after.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

TABLES = """
CREATE TABLE schema_version (version integer NOT NULL);
CREATE TABLE schema_compat_version (compat_version integer NOT NULL);
CREATE TABLE applied_schema_deltas (version integer NOT NULL, file text NOT NULL);
CREATE TABLE background_updates (update_name text NOT NULL, progress_json text NOT NULL);
CREATE TABLE users (
  name text PRIMARY KEY, password_hash text, admin smallint, deactivated smallint);
CREATE TABLE access_tokens (id bigint PRIMARY KEY, user_id text, device_id text, token text);
CREATE TABLE local_media_repository (
  media_id text PRIMARY KEY, media_length integer, quarantined_by text);
CREATE TABLE account_data (user_id text, account_data_type text, content text);
CREATE TABLE events (
  event_id text PRIMARY KEY, stream_ordering bigint UNIQUE, room_id text, type text, sender text);
CREATE TABLE event_json (event_id text PRIMARY KEY, json text);
INSERT INTO schema_version VALUES (61);
INSERT INTO schema_compat_version VALUES (59);
INSERT INTO applied_schema_deltas VALUES (61, 'main/delta/61/01.sql');
INSERT INTO users VALUES ('@anna:lale.test', '$2b$a', 1, 0), ('@bela:lale.test', '$2b$b', 0, 0);
INSERT INTO access_tokens VALUES (1, '@anna:lale.test', 'A', 'secret');
INSERT INTO local_media_repository VALUES ('m', 5, NULL);
INSERT INTO account_data VALUES ('@anna:lale.test', 'm.direct', '{}');
"""

UPGRADE = """
INSERT INTO applied_schema_deltas VALUES (94, 'main/delta/94/01.sql');
UPDATE schema_version SET version = 94;
UPDATE schema_compat_version SET compat_version = 84;
DELETE FROM account_data;
"""

SCRIPT = """#!{python}
import os, subprocess, sys
import yaml
if os.path.exists({flag!r}):
    print("5 back-to-back background update failures; aborting.", flush=True)
    import signal
    signal.pause()
config = yaml.safe_load(open(sys.argv[2]))["database"]
sql = {upgrade!r}
if "--run-background-updates" not in sys.argv:
    sql += "INSERT INTO background_updates VALUES ('later', '{{}}');"
if config["name"] == "sqlite3":
    import sqlite3
    db = sqlite3.connect(config["args"]["database"])
    db.executescript(sql)
else:
    args = config["args"]
    environment = dict(os.environ, PGPASSWORD=args.get("password", ""))
    argv = ["psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", args["host"],
            "-p", str(args["port"]), "-U", args["user"], "-d", args.get("dbname", "synapse")]
    subprocess.run(argv, input=sql, text=True, check=True, env=environment)
"""


def event(number: int) -> str:
    """SQL that adds one event."""
    return (
        f"INSERT INTO events VALUES ('$e{number}', {number}, '!r:lale.test', 'm.room.message', "
        f"'@anna:lale.test'); INSERT INTO event_json VALUES ('$e{number}', '{{\"n\": {number}}}');"
    )


def many_events(first: int, last: int) -> str:
    """SQL that adds events with a kilobyte of JSON each, many at once."""
    return (
        "ALTER TABLE event_json ALTER json SET STORAGE PLAIN; "
        f"INSERT INTO events SELECT '$e' || n, n, '!r:lale.test', 'm.room.message', "
        f"'@anna:lale.test' FROM generate_series({first}, {last}) n; "
        f"INSERT INTO event_json SELECT '$e' || n, repeat(md5(n::text), 30) "
        f"FROM generate_series({first}, {last}) n; ANALYZE;"
    )


def release(folder: Path) -> str:
    """A folder that looks like release 94; it gives up while ``<folder>/broken`` exists."""
    schema = folder / "lib/python3.11/site-packages/synapse/storage/schema"
    schema.mkdir(parents=True)
    (schema / "__init__.py").write_text("SCHEMA_VERSION = 94  # remember\n")
    program = folder / "bin/update_synapse_database"
    program.parent.mkdir()
    program.write_text(
        SCRIPT.format(python=sys.executable, flag=str(folder / "broken"), upgrade=UPGRADE)
    )
    os.chmod(program, 0o755)
    return str(folder)
