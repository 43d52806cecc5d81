"""Synapse's media and their store, on a machine that serves them (formula media).

The work is done by ``saltworks_media.py`` as Synapse's user, with the Python of its release.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "media_store"

#: Written by the formula.
PROGRAM = "/opt/saltworks/media/saltworks_media.py"
SETTINGS = "/etc/saltworks/media.json"

PYTHON = "/opt/synapse/current/bin/python"
RELEASES = "/opt/synapse/releases"

ASK_PROVIDER = (
    "from importlib.metadata import version; import s3_storage_provider; "
    "print(version('synapse-s3-storage-provider'))"
)

#: How long a file may take from its first byte to its last is nobody's business; the whole is
#: bounded.
LONG_SECONDS = 7 * 86400

#: Of what is done while people wait.
SHORT_SECONDS = 60

#: Of a question about the cache: a million files are walked in less.
REPORT_SECONDS = 40

UNIT = "saltworks-media-cache"
#: What systemd is asked of the timer and its service.
ASKED = "Id,ActiveState,Result"

#: See ``saltworks_media_tree.py``: what the store has.
DIRECTORIES = ("local_content", "local_thumbnails", "remote_content", "remote_thumbnail")


def __virtual__() -> str:
    return __virtualname__


def copy(user: str) -> dict[str, Any]:
    """Send every file to the store that was not sent yet; live, run again it goes on.

    :param user: Synapse's account.
    :returns: ``files`` there are, ``copied`` and ``bytes`` of those sent now, ``vanished`` ones
        that went while they were copied, ``unreadable`` ones if there are any, ``seconds``.
    :raises CommandExecutionError: the store does not take a file.

    CLI Example:

    .. code-block:: bash

        salt synapse media_store.copy synapse
    """
    return _run(user, LONG_SECONDS, "copy")


def compare(user: str) -> dict[str, Any]:
    """Compare every file with the store's own hashes (``storage.hash`` there comes first).

    :param user: Synapse's account.
    :returns: ``files``, ``disk``: those whose hash the storage machine has from its disk, ``read``:
        the rest, whose object was read back, ``copied``: those of them that were sent for that.
    :raises CommandExecutionError: a file or its object cannot be read, or they differ.

    CLI Example:

    .. code-block:: bash

        salt synapse media_store.compare synapse
    """
    return _run(user, LONG_SECONDS, "compare")


def settle(user: str) -> dict[str, Any]:
    """Send, and read back, what came since the last comparison; short, for the window.

    :param user: Synapse's account.

    CLI Example:

    .. code-block:: bash

        salt synapse media_store.settle synapse
    """
    return _run(user, SHORT_SECONDS, "settle")


def back(user: str) -> dict[str, Any]:
    """Fetch every object that this machine has no file of; compare all the others.

    :param user: Synapse's account.
    :returns: ``objects``, ``fetched`` and their ``bytes``.
    :raises CommandExecutionError: a file differs from its object, or there is no room.

    CLI Example:

    .. code-block:: bash

        salt synapse media_store.back synapse
    """
    return _run(user, LONG_SECONDS, "back")


def prune(
    user: str,
    keep_bytes: int | None = None,
    keep_seconds: int | None = None,
    idle_seconds: int | None = None,
) -> dict[str, Any]:
    """Remove local files that the store has, each after its object was read and is the same.

    The timer does this by itself. Refused before the media have moved.

    :param user: Synapse's account.
    :param keep_bytes: what all files may take; None: as in the cluster map.
    :param keep_seconds: unused for longer they go in any case.
    :param idle_seconds: used within that they stay in any case.
    :returns: ``files`` there were, ``pruned`` and their ``bytes``.

    CLI Example:

    .. code-block:: bash

        salt synapse media_store.prune synapse keep_bytes=0
    """
    given = {"keep-bytes": keep_bytes, "keep-seconds": keep_seconds, "idle-seconds": idle_seconds}
    words = [f"--{name}={int(value)}" for name, value in given.items() if value is not None]
    return _run(user, LONG_SECONDS, "prune", *words)


def leave(user: str, media: str, seconds: float = LONG_SECONDS) -> dict[str, Any]:
    """Empty the cache before its machine is retired: nothing in it is the only copy.

    Each file goes after its object was read and is the same. What the store does not have stays:
    lost there, :func:`settle` sends it; deleted there, remove it here too. Synapse must not run
    here any more.

    :param user: Synapse's account.
    :param media: the media folder.
    :param seconds: how long it may take; what is left then goes in the next run.
    :returns: ``files`` there were, ``removed`` and their ``bytes``.
    :raises CommandExecutionError: a file is left, and why.

    CLI Example:

    .. code-block:: bash

        salt media-1 media_store.leave synapse /var/lib/synapse/media_store
    """
    folders = (os.path.join(media, name) for name in DIRECTORIES)
    if not any(files for top in folders for _, _, files in os.walk(top)):
        # Also where its settings never came, or have gone already with an earlier run.
        return {"files": 0, "removed": 0, "bytes": 0}
    # A pruning may take hours, and two of them do not work at a time.
    _systemctl("stop", f"{UNIT}.timer", f"{UNIT}.service")
    return _run(user, seconds, "leave")


def report(user: str) -> dict[str, Any]:
    """How the cache of this machine is; changes nothing, and asks no other machine.

    :param user: Synapse's account.
    :returns: what ``saltworks_media.py report`` says (``files``, ``bytes``, ``unverified``,
        ``cache``, ``free``, ``last``), and of systemd ``timer``: its state; ``service``: its state
        and how it ended last.
    :raises CommandExecutionError: it cannot be said.

    CLI Example:

    .. code-block:: bash

        salt synapse media_store.report synapse
    """
    answer = _run(user, REPORT_SECONDS, "report")
    shown = _systemctl("show", f"--property={ASKED}", f"{UNIT}.timer", f"{UNIT}.service")
    return {**answer, **units(shown)}


def usage(user: str, seconds: float = 20) -> dict[str, Any]:
    """How many objects the store has, and their bytes, by listing them.

    A request for each thousand objects, and one for each folder of them.

    :param user: Synapse's account.
    :param seconds: after which the rest is not asked for.
    :returns: ``objects``, ``bytes``, ``requests``, and ``whole``: whether that is all.
    :raises CommandExecutionError: the store does not answer.

    CLI Example:

    .. code-block:: bash

        salt synapse media_store.usage synapse
    """
    return _run(user, seconds + SHORT_SECONDS, "usage", f"--seconds={float(seconds)}")


def units(text: str) -> dict[str, Any]:
    """Timer and service in what ``systemctl show`` says of both.

    :param text: its output, a unit's lines and an empty one.
    :returns: ``timer``: ``active`` or what it is else; ``service``: ``running``, or how it ended
        last (``success``, ``exit-code``, ``timeout``, ...).
    """
    rows = [
        dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        for block in text.split("\n\n")
    ]
    found = {row.get("Id", ""): row for row in rows}
    timer, service = found.get(f"{UNIT}.timer", {}), found.get(f"{UNIT}.service", {})
    at_work = service.get("ActiveState") == "activating"
    return {
        "timer": timer.get("ActiveState", "unknown"),
        "service": "running" if at_work else service.get("Result", "unknown"),
    }


def ready(version: str, user: str, media: str) -> dict[str, Any]:
    """What the move needs of this machine.

    :param version: of the release in use.
    :param user: Synapse's account.
    :param media: the media folder.
    :returns: ``provider``: the version of synapse-s3-storage-provider in the release, or empty;
        ``unreadable``: what Synapse's user cannot read below the media folder, some of it.
    """
    python = os.path.join(RELEASES, version, "bin", "python")
    provider = _as_user(user, 30, python, "-c", ASK_PROVIDER)
    unreadable = _as_user(user, 40, "find", media, "!", "-readable", "-print")
    return {
        "provider": provider.stdout.strip() if provider.returncode == 0 else "",
        "unreadable": unreadable.stdout.splitlines()[:5],
    }


def _systemctl(*words: str) -> str:
    done = subprocess.run(
        ["systemctl", *words], capture_output=True, text=True, timeout=SHORT_SECONDS, check=False
    )
    return done.stdout


def _run(user: str, timeout: float, *words: str) -> dict[str, Any]:
    if not os.path.exists(SETTINGS):
        raise CommandExecutionError(
            f"{SETTINGS} is not there: the media have not begun to move; "
            "run salt-run state.orchestrate orch.m3.media"
        )
    done = _as_user(user, timeout, PYTHON, PROGRAM, SETTINGS, *words)
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        said = done.stderr.strip()[-800:] or f"exit {done.returncode}"
        raise CommandExecutionError(f"saltworks_media.py {words[0]} broke off: {said}") from None
    if "error" in answer:
        raise CommandExecutionError(answer["error"])
    return answer


def _as_user(user: str, timeout: float, *command: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["runuser", "-u", user, "--", *command],
            capture_output=True, text=True, timeout=timeout, check=False, cwd="/",
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
    except subprocess.TimeoutExpired:
        raise CommandExecutionError(
            f"{os.path.basename(command[0])} did not end within {timeout:.0f} s; run it again, "
            "it goes on"
        ) from None
