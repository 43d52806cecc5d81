"""What is known of each file, kept on disk: one JSON object a line.

``path``, ``size``, ``mtime`` (of the local file, in nanoseconds), ``sha256``, and ``verified``: how
the store's bytes were seen to be the same. ``disk``: by the storage machine's own hash of its file;
``read``: by reading the object back; empty: only sent yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from saltworks_media_tree import Entry, Failed

#: How long another run may keep the manifest, in seconds.
LOCK_SECONDS = 30


class Manifest:
    """The manifest's file: read whole, added to line by line, made short when most is old."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Entry] = {}
        self._lock = threading.Lock()
        self._lines = 0
        self._cut = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[Manifest]:
        """For one run at a time.

        :raises Failed: another run has it for too long.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{self.path}.lock", "w", encoding="utf-8") as lock:
            self._wait(lock.fileno())
            self._read()
            with open(self.path, "a", encoding="utf-8") as self._file:
                self._file.write("\n" if self._cut else "")
                yield self
            if self._lines > 2 * len(self.known):
                self._shorten()

    def read(self) -> dict[str, Entry]:
        """What is known, for who only looks: no other run is waited for."""
        self._read()
        return self.known

    def keep(self, paths: Iterable[str]) -> None:
        """Forget all other files; the manifest's file is made short at the end of the run."""
        for path in set(self.known) - set(paths):
            del self.known[path]

    def put(self, path: str, entry: Entry) -> None:
        """Write down what is known of a file from now on."""
        with self._lock:
            self.known[path] = entry
            self._lines += 1
            self._file.write(self._line(path, entry))
            self._file.flush()

    def _wait(self, lock: int) -> None:
        end = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > end:
                    raise Failed(
                        "another run of saltworks_media.py works on the media: wait for it "
                        "(systemctl status saltworks-media-cache)"
                    ) from None
                time.sleep(0.2)

    def _read(self) -> None:
        if not self.path.exists():
            return
        with open(self.path, encoding="utf-8") as lines:
            for line in lines:
                self._lines += 1
                self._cut = not line.endswith("\n")
                # The last line of a run that was killed may be half a line.
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    row = json.loads(line)
                    path = row.pop("path")
                    self.known[path] = Entry(**row)

    def _shorten(self) -> None:
        temporary = Path(f"{self.path}.writing")
        with open(temporary, "w", encoding="utf-8") as file:
            for path, entry in sorted(self.known.items()):
                file.write(self._line(path, entry))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path)

    @staticmethod
    def _line(path: str, entry: Entry) -> str:
        return json.dumps({"path": path, **asdict(entry)}) + "\n"
