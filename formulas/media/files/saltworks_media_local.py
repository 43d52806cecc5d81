"""Synapse's media folder as a cache from which files go at any time.

Synapse 1.163.2 looks whether a file is there and then opens it, so one that goes in between is an
error to the client. And what it fetches for a thumbnail it writes under the file's own name, so
that another request finds, and is sent, what is there so far (``synapse/media/media_storage.py``,
``fetch_media`` and ``ensure_media_is_in_local_cache``).

When a file was used last is written down here, because file systems do that once a day at the most
(mount(8), ``relatime``), or never.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import AsyncIterator
from typing import Any, BinaryIO

from synapse.api.errors import NotFoundError
from synapse.logging.context import defer_to_thread
from synapse.media.media_storage import MediaStorage
from synapse.util.duration import Duration
from synapse.util.file_consumer import BackgroundFileConsumer

#: How often a file that goes before it is opened is looked for again.
TRIES = 3

#: How often, and after what pause, one is tried that somebody removes just now: on a busy disk that
#: may take its time, and a second of it is waited for.
HELD_TRIES, HELD_PAUSE = 20, Duration(milliseconds=50)

#: What the name of a file begins with that is being fetched: with a dot it is none of Synapse's,
#: and what is left of it ``saltworks_media.py`` knows and removes.
PARTIAL = ".saltworks-"

_fetch, _ensure = MediaStorage.fetch_media, MediaStorage.ensure_media_is_in_local_cache


def take_over() -> None:
    """From now on files may go; once more changes nothing."""
    MediaStorage.fetch_media = fetch_media
    MediaStorage.ensure_media_is_in_local_cache = ensure_media_is_in_local_cache


async def fetch_media(self: MediaStorage, file_info: Any) -> Any:
    """In the place of Synapse's own: a file that went just now comes from the store."""
    for _ in range(TRIES):
        with contextlib.suppress(FileNotFoundError):
            return _noticed(await _fetch(self, file_info))
    return _noticed(await _fetch(self, file_info))


@contextlib.asynccontextmanager
async def ensure_media_is_in_local_cache(
    self: MediaStorage, file_info: Any
) -> AsyncIterator[str]:
    """In the place of Synapse's own: a file appears whole, and stays within the block."""
    for number in range(HELD_TRIES):
        if number:
            await self.clock.sleep(HELD_PAUSE)
        await _brought(self, file_info)
        async with _ensure(self, file_info) as path:
            file = await defer_to_thread(self.reactor, _held, path)
            if file is not None:
                _used(file)
                with file:
                    yield path
                return
    raise NotFoundError


async def _brought(storage: MediaStorage, file_info: Any) -> None:
    """A file that is not there is fetched, if a store has it."""
    if storage.local_media_directory is None:
        return
    path = storage._file_info_to_path(file_info)
    local = os.path.join(storage.local_media_directory, path)
    if os.path.exists(local):
        return
    for provider in storage.storage_providers:
        found = await provider.fetch(path, file_info)
        if not found:
            continue
        folder = os.path.dirname(local)
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=PARTIAL)
        try:
            with found:
                consumer = BackgroundFileConsumer(os.fdopen(handle, "wb"), storage.reactor)
                await found.write_to_consumer(consumer)
                await consumer.wait()
            # One that came meanwhile stays: a lock is of the file, not of its name.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, local)
        finally:
            os.unlink(temporary)
        return


def _noticed(found: Any) -> Any:
    """What was found is used now, if it is a file."""
    if file := getattr(found, "open_file", None):
        _used(file)
    return found


def _used(file: BinaryIO) -> None:
    # Of a file that is not Synapse's own only the system may say it.
    with contextlib.suppress(PermissionError):
        mtime = os.fstat(file.fileno()).st_mtime_ns
        os.utime(file.fileno(), ns=(time.time_ns(), mtime))


def _held(path: str) -> BinaryIO | None:
    """The file, locked against who would remove it; None if somebody does."""
    try:
        file = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            return file
    except (BlockingIOError, FileNotFoundError):
        pass
    file.close()
    return None
