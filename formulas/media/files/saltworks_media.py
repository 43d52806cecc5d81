"""The media tree of Synapse and its copy in an S3 store: copy, compare, fetch back, prune.

Run by the Python of Synapse's release, whose boto3 it uses, as Synapse's user:

    python saltworks_media.py <settings.json> copy|compare|settle|back|prune [options]

Until the media have moved the local tree is what counts, and the store becomes like it. From then
on the store counts (``counts`` in the settings): nothing in it is overwritten any more.

What is known of each file lies in the manifest. The answer is one JSON object on standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from saltworks_media_manifest import Manifest
from saltworks_media_store import IMPATIENCE, PATIENCE, THREADS, Store
from saltworks_media_tree import (
    NAMES,
    Entry,
    Failed,
    File,
    Stored,
    described,
    digest,
    names,
    same,
    settled,
    to_copy,
    to_fetch,
    to_prune,
    walked,
)

#: How often a file that changes while it is read is read again.
TRIES = 3
PAUSE_SECONDS = 0.5


class Media:
    """The local tree and its store.

    :param counts: ``local`` or ``store``: whose bytes are right where they differ.
    """

    def __init__(self, root: Path, store: Store, manifest: Manifest, counts: str) -> None:
        self.root = root
        self.store = store
        self.manifest = manifest
        self.counts = counts
        self.unreadable: list[str] = []
        self.differing: list[str] = []
        self.vanished = self.broken = 0

    def copy(self) -> dict[str, Any]:
        """Send every file that was not sent yet; nothing is compared.

        :raises Failed: the store does not take a file.
        """
        local = walked(self.root)
        wanted = to_copy(local, self.manifest.known)
        done: list[Entry] = []
        try:
            for row in self._each(wanted, self._send):
                done += [row] if row is not None else []
        except Failed as error:
            raise Failed(
                f"{error}. {len(local) - len(wanted) + len(done)} of {len(local)} files are there, "
                "they are not sent again"
            ) from error
        return self._answer(files=len(local), copied=len(done), bytes=sum(r.size for r in done))

    def compare(self) -> dict[str, Any]:
        """Every file against the storage machine's own hashes; what is not the same is settled.

        :raises Failed: a file cannot be read, or the store has other bytes.
        """
        store = self.store.ledger()
        local = self._known()
        on_disk = same(local, self.manifest.known, store)
        for path in on_disk:
            if self.manifest.known[path].verified != "disk":
                self.manifest.put(path, replace(self.manifest.known[path], verified="disk"))
        return {**self._settle(set(local) - on_disk), "files": len(local), "disk": len(on_disk)}

    def settle(self) -> dict[str, Any]:
        """What came since the last comparison is sent and read back; the rest is known.

        :raises Failed: a file cannot be read, or the store has other bytes.
        """
        local = walked(self.root)
        rest = set(local) - settled(local, self.manifest.known)
        return {**self._settle(rest), "files": len(local)}

    def back(self) -> dict[str, Any]:
        """Every object that this machine has no file of is fetched; every file is compared.

        :raises Failed: a file differs from its object, or an object cannot be fetched.
        """
        store = self.store.ledger()
        local = self._known()
        rest = set(local) & set(store) - same(local, self.manifest.known, store)
        compared = self._settle(rest)
        wanted = to_fetch(walked(self.root), store)
        fetched = [
            row
            for row in self._each(wanted, lambda path: self._fetch(path, store[path]))
            if row is not None
        ]
        missing = to_fetch(walked(self.root), store)
        if missing:
            raise Failed(
                f"{len(missing)} objects are not what the storage machine's disk has: "
                f"{names(missing)}; run storage.hash there, then the milestone's rollback again"
            )
        size = sum(row.size for row in fetched)
        figures = {"objects": len(store), "fetched": len(fetched), "bytes": size}
        return {**compared, "files": len(local) + len(fetched), **figures}

    def prune(self, keep_bytes: int, keep_seconds: float, idle_seconds: float) -> dict[str, Any]:
        """Files that are used least go, each after its object was read and is the same.

        :raises Failed: an object is not the same as its file, which is kept.
        """
        local = walked(self.root)
        chosen = to_prune(
            local,
            keep_bytes=keep_bytes,
            keep_seconds=keep_seconds,
            idle_seconds=idle_seconds,
            now=time.time(),
        )
        gone = [
            size
            for size in self._each(chosen, lambda path: self._prune(path, local[path]))
            if size is not None
        ]
        answer = self._answer(files=len(local), pruned=len(gone), bytes=sum(gone))
        self._complain(f" Besides: {json.dumps(answer)}")
        return answer

    def _known(self) -> dict[str, File]:
        """The local tree; each file's hash is known afterwards, but of those that are broken."""
        local = walked(self.root)
        wanted = to_copy(local, self.manifest.known)
        for path, entry in self._each(wanted, lambda path: (path, self._hashed(path))):
            old = self.manifest.known.get(path)
            if entry is not None and (self.counts == "local" or old is None or not old.verified):
                self.manifest.put(path, entry)
        return local

    def _settle(self, paths: set[str]) -> dict[str, Any]:
        done = [row for row in self._each(sorted(paths), self._proven) if row is not None]
        self._complain("")
        return self._answer(copied=sum(done), read=len(done))

    def _complain(self, more: str) -> None:
        rows = [
            (
                sorted(set(self.unreadable)),
                "cannot be read or change all the time",
                "give them to Synapse's user",
            ),
            (
                sorted(self.differing),
                "differ from their object, both are kept",
                "compare both with a backup, and remove the wrong one",
            ),
        ]
        said = [
            f"{len(paths)} files {what}: {names(paths)}; {do}, then run this again"
            for paths, what, do in rows
            if paths
        ]
        if said:
            raise Failed(". ".join(said) + more)

    def _proven(self, path: str) -> bool | None:
        """The store's bytes are the file's, by reading them; True if it was sent for that."""
        entry = self._hashed(path)
        if entry is None:
            return None
        found = self.store.read(path)
        if sent := found != Stored(entry.size, entry.sha256):
            if found is not None and self.counts == "store":
                self._judge(path, found)
                return None
            entry = self._send(path)
            if entry is None:
                return None
            if self.store.read(path) != Stored(entry.size, entry.sha256):
                raise Failed(
                    f"the store has not the bytes of {path} that it was sent just now: see the "
                    "disk of the storage machine"
                )
        self.manifest.put(path, replace(entry, verified="read"))
        return sent

    def _judge(self, path: str, found: Stored) -> None:
        """A file is not what its object is: broken, if the object is what it was once proven."""
        known = self.manifest.known.get(path)
        if known is not None and known.verified and found == Stored(known.size, known.sha256):
            (self.root / path).unlink(missing_ok=True)
            self.broken += 1
        else:
            self.differing.append(path)

    def _send(self, path: str) -> Entry | None:
        entry = self._steady(path, lambda file: self.store.put(path, file))
        if entry is not None:
            self.manifest.put(path, entry)
        return entry

    def _hashed(self, path: str) -> Entry | None:
        return self._steady(path, digest)

    def _steady(self, path: str, use: Callable[[BinaryIO], str]) -> Entry | None:
        """Use a file, which gives its hash; again if it changed. None: gone, or not readable."""
        for _ in range(TRIES):
            try:
                with open(self.root / path, "rb", opener=_unnoticed) as file:
                    before = described(os.fstat(file.fileno()))
                    entry = Entry(before.size, before.mtime, use(file))
                    after = described(os.stat(self.root / path))
            except FileNotFoundError:
                self.vanished += 1
                return None
            except OSError as error:
                self.unreadable.append(f"{path} ({error.strerror})")
                return None
            if entry.is_of(after):
                return entry
            time.sleep(PAUSE_SECONDS)
        self.unreadable.append(f"{path} (changes)")
        return None

    def _fetch(self, path: str, wanted: Stored) -> Entry | None:
        target = self.root / path
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".", delete=False) as file:
                temporary = Path(file.name)
                try:
                    if self.store.read(path, file.file) != wanted:
                        return None
                    file.flush()
                    os.fsync(file.fileno())
                    os.chmod(temporary, 0o640)
                    os.replace(temporary, target)
                finally:
                    temporary.unlink(missing_ok=True)
        except OSError as error:
            raise Failed(
                f"{path} cannot be put into {self.root}: {error.strerror}; make room there, then "
                "run this again, it goes on"
            ) from error
        entry = Entry(wanted.size, target.stat().st_mtime_ns, wanted.sha256, "read")
        self.manifest.put(path, entry)
        return entry

    def _prune(self, path: str, file: File) -> int | None:
        """Remove a file; its size, or None if it stays or was broken."""
        sent = self._proven(path)
        # Sent only now: what is in the store for a while already can go, this the next time.
        if sent is not False:
            return None
        try:
            if described(os.stat(self.root / path)) != file:
                return None
            os.unlink(self.root / path)
        except FileNotFoundError:
            return None
        return file.size

    def _each(self, paths: Iterable[str], work: Callable[[str], Any]) -> Iterator[Any]:
        """Work on files at once; the first that fails the run ends it, what runs is ended well."""
        with ThreadPoolExecutor(THREADS) as pool:
            jobs = [pool.submit(work, path) for path in paths]
            try:
                for job in as_completed(jobs):
                    yield job.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _answer(self, **figures: Any) -> dict[str, Any]:
        more = {"unreadable": sorted(set(self.unreadable))[:NAMES]} if self.unreadable else {}
        return {**figures, "vanished": self.vanished, "broken": self.broken, **more}


def _unnoticed(path: str, flags: int) -> int:
    """Open a file so that its time of use stays what it is; only its owner may."""
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


def run(argv: list[str]) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", type=Path)
    parser.add_argument("act", choices=("copy", "compare", "settle", "back", "prune"))
    for name in ("keep-bytes", "keep-seconds", "idle-seconds"):
        parser.add_argument(f"--{name}", type=int)
    given = parser.parse_args(argv)
    begun = time.monotonic()
    try:
        settings = json.loads(given.settings.read_text(encoding="utf-8"))
        root = Path(settings["media"])
        if not root.is_dir():
            raise Failed(f"the media folder {root} is not there")
        store = Store(settings["store"], IMPATIENCE if given.act == "settle" else PATIENCE)
        with Manifest(Path(settings["manifest"])).opened() as manifest:
            media = Media(root, store, manifest, settings["counts"])
            if given.act == "prune":
                cache = {
                    key: settings["cache"][key] if (said := getattr(given, key)) is None else said
                    for key in ("keep_bytes", "keep_seconds", "idle_seconds")
                }
                answer = media.prune(**cache)
            else:
                answer = getattr(media, given.act)()
    except (Failed, OSError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps({**answer, "seconds": round(time.monotonic() - begun, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
