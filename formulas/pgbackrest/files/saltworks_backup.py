"""Backups of this machine's PostgreSQL by pgBackRest: one taken, or what there is.

Run by the system's Python as the cluster's account:

    python3 saltworks_backup.py <settings.json> report|nightly|full|diff|incr

``nightly`` does nothing unless it is this machine's turn. The answer is one JSON object on
standard output, with ``error`` (and exit code 1) when it failed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from saltworks_backup_facts import archive_id, backups, stretches
from saltworks_backup_turn import Turn, turn

Json = dict[str, Any]

#: How long the store and the server may take to say what there is, in seconds.
STORE_SECONDS, SERVER_SECONDS = 120, 30

#: It asks four times, each time for so long, before it gives the store up.
BRIEF = "--io-timeout=3"

#: pgBackRest's exit code when another run has its lock (error.auto.h, LockAcquireError).
LOCKED = 50

_SERVER = """
SELECT json_build_object(
  'standby', pg_is_in_recovery(),
  'timeline', (SELECT timeline_id FROM pg_control_checkpoint()),
  'position', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()
                   ELSE pg_current_wal_lsn() END,
  'now', extract(epoch FROM clock_timestamp()),
  'archive_mode', current_setting('archive_mode'),
  'archive_command', current_setting('archive_command'),
  'waiting', (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
  'archiver', (SELECT row_to_json(a) FROM pg_stat_archiver a));
"""


class Failed(Exception):
    """What could not be done, where, and what to look at."""


def main(settings: Mapping[str, Any], wanted: str) -> Json:
    """What the module's head says.

    :param settings: as the formula writes them.
    :raises Failed: it could not be done.
    """
    if wanted == "report":
        return {"server": _either(server, settings), "store": _either(store, settings)}
    if wanted == "nightly":
        there = store(settings)
        asked = _turn(settings, there)
        if not asked.type:
            return {"taken": "", "why": asked.why}
    else:
        asked = Turn(wanted, "asked for")
        if server(settings)["standby"]:
            raise Failed("this server is a standby: backups are taken of the primary")
    return _taken(settings, asked)


def server(settings: Mapping[str, Any]) -> Json:
    """What this machine's server says of itself and its archiving.

    :raises Failed: it does not answer.
    """
    words = [f"{settings['bindir']}/psql", "-X", "-q", "-A", "-t", "-w", "-d", "postgres"]
    words += ["-h", settings["socket"], "-p", str(settings["port"]), "-c", _SERVER]
    said: Json = json.loads(_run(words, SERVER_SECONDS, "asking PostgreSQL").stdout)
    return said


def store(settings: Mapping[str, Any]) -> Json:
    """The repository's backups and WAL.

    :raises Failed: the store does not answer, or cannot be read.
    """
    words = ["info", "--output=json", BRIEF]
    found = json.loads(_pgbackrest(settings, words, STORE_SECONDS))
    stanza = next((row for row in found if row["name"] == settings["stanza"]), {})
    # Codes of pgBackRest's info: 0 is well, 2 without a backup yet.
    if stanza.get("status", {}).get("code") not in (0, 2):
        said = [row["status"]["message"] for row in stanza.get("repo", [])]
        why = "; ".join(said)[-1000:] or "there is nothing of it"
        raise Failed(f"the store does not tell of {settings['stanza']}: {why}")
    listing: Json = {}
    if folder := archive_id(stanza):
        words = ["repo-ls", BRIEF, "--recurse", "--output=json"]
        words += [f"archive/{settings['stanza']}/{folder}"]
        listing = json.loads(_pgbackrest(settings, words, STORE_SECONDS))
    return {
        "backups": backups(stanza),
        "stretches": stretches(listing),
        "encrypted": stanza.get("cipher", "none") != "none",
        "busy": bool(stanza["status"]["lock"]["backup"]["held"]),
    }


def _turn(settings: Mapping[str, Any], there: Mapping[str, Any]) -> Turn:
    return turn(
        standby=server(settings)["standby"],
        backups=there["backups"],
        stretches=there["stretches"],
        now=time.time(),
        hour=settings["hour"],
        full_days=settings["full_days"],
    )


def _taken(settings: Mapping[str, Any], asked: Turn) -> Json:
    begun = time.monotonic()
    known = {row["label"] for row in store(settings)["backups"]}
    _pgbackrest(settings, ["backup", f"--type={asked.type}"], settings["seconds"])
    new = [row for row in store(settings)["backups"] if row["label"] not in known]
    if not new:
        raise Failed("pgBackRest ended well and there is no new backup; see /var/log/pgbackrest")
    seconds = round(time.monotonic() - begun, 1)
    return {"taken": new[-1]["label"], "why": asked.why, "seconds": seconds, **new[-1]}


def _pgbackrest(settings: Mapping[str, Any], words: Sequence[str], seconds: float) -> str:
    """pgBackRest's answer; its lock keeps two backups apart on one machine."""
    options = [f"--config={settings['config']}", "--log-level-console=off"]
    options += ["--log-level-stderr=error", f"--stanza={settings['stanza']}"]
    what = f"pgBackRest {words[0]}"
    program = ["pgbackrest", *options, *words]
    done = _run(program, seconds, what, may_fail=True)
    if done.returncode == LOCKED:
        raise Failed(f"{what}: another run is at work here; wait for its end. {_end(done.stderr)}")
    if done.returncode:
        raise Failed(f"{what} ended with {done.returncode}: {_end(done.stderr)}")
    return done.stdout


def _run(
    words: Sequence[str], seconds: float, what: str, may_fail: bool = False
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            list(words), capture_output=True, text=True, timeout=seconds, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{what}: not done after {seconds:g} s, and stopped") from None
    except OSError as error:
        raise Failed(f"{what}: {words[0]} cannot be started: {error}") from None
    if done.returncode and not may_fail:
        raise Failed(f"{what}: {_end(done.stderr)}")
    return done


def _either(ask: Any, settings: Mapping[str, Any]) -> Json:
    try:
        answer: Json = ask(settings)
        return answer
    except Failed as error:
        return {"error": str(error)}


def _end(said: str) -> str:
    return said.strip()[-1000:]


if __name__ == "__main__":
    try:
        answer = main(json.loads(Path(sys.argv[1]).read_text("utf-8")), sys.argv[2])
    except Failed as error:
        answer = {"error": str(error)}
    print(json.dumps(answer))
    sys.exit("error" in answer)
