"""The media tree of Synapse and its copy in an S3 store: copy, compare, fetch back, prune, leave.

Run by the Python of Synapse's release, whose boto3 it uses, as Synapse's user:

    python saltworks_media.py <settings.json> <act> [options]

``copy``, ``compare``, ``settle``, ``back``, ``prune``, ``leave`` work on the media; ``report`` and
``usage`` only look.

Until the media have moved the local tree is what counts, and the store becomes like it. From then
on the store counts (``counts`` in the settings): nothing in it is overwritten any more. Where the
tree has never been more than a cache (``sends`` is false) pruning adds nothing to the store either,
and leaving never does: Synapse has stored each file before it was answered, so an object that is
not there was removed, or lost, and which of them a person must say.

What is known of each file lies in the manifest, the last pruning beside it. The answer is one JSON
object on standard output.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

from saltworks_media_manifest import Manifest
from saltworks_media_store import IMPATIENCE, PATIENCE, THREADS, Store
from saltworks_media_tree import (
    NAMES,
    PARTIAL,
    Beginning,
    Entry,
    Failed,
    File,
    Stored,
    described,
    digest,
    judged,
    names,
    partial,
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

#: After how many seconds without a byte nobody fetches a file any more.
PARTIAL_SECONDS = 3600

#: For how long the store's objects are listed, in seconds.
USAGE_SECONDS = 20.0

#: Beside the manifest: what the last pruning did.
PRUNED = "pruned.json"

#: What became of a file whose bytes the store shall have: it had them (``same``), got them now
#: (``sent``); or it has none and gets none (``missing``).
Proof = Literal["same", "sent", "missing"]


class Media:
    """The local tree and its store.

    :param counts: ``local`` or ``store``: whose bytes are right where they differ.
    :param sends: whether pruning sends what the store does not have.
    """

    def __init__(
        self, root: Path, store: Store, manifest: Manifest, counts: str, sends: bool
    ) -> None:
        self.root = root
        self.store = store
        self.manifest = manifest
        self.counts = counts
        self.sends = sends
        self.unreadable: list[str] = []
        self.differing: list[str] = []
        self.missing: list[str] = []
        #: Sizes of the files that were removed.
        self.removed: list[int] = []
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
        self._clear(time.time() - PARTIAL_SECONDS)
        local = walked(self.root)
        chosen = to_prune(
            local,
            keep_bytes=keep_bytes,
            keep_seconds=keep_seconds,
            idle_seconds=idle_seconds,
            now=time.time(),
        )
        self._remove_all({path: local[path] for path in chosen})
        left = walked(self.root)
        if not self.sends:
            # A cache's files come and go, and half of one is seen by its object alone.
            self.manifest.keep(left)
        answer = self._answer(
            files=len(local),
            pruned=len(self.removed),
            bytes=sum(self.removed),
            left=len(left),
            left_bytes=sum(file.size for file in left.values()),
        )
        self._complain(f" Besides: {json.dumps(answer)}")
        return answer

    def leave(self) -> dict[str, Any]:
        """Every file goes, once its object was read and is the same; Synapse is stopped by then.

        What the store does not have stays, and is not sent either: see above.

        :raises Failed: files are left, and why.
        """
        self.sends = False
        self._clear(math.inf)
        local = walked(self.root)
        self._remove_all(local)
        left = walked(self.root)
        self.manifest.keep(left)
        self._complain("")
        if left:
            raise Failed(
                f"{len(left)} files are left, they came or changed meanwhile: "
                f"{names(sorted(left))}; stop Synapse, then run this again, it goes on"
            )
        return self._answer(files=len(local), removed=len(self.removed), bytes=sum(self.removed))

    def _clear(self, before: float) -> None:
        """Remove what is left of fetches that were cut off, see :func:`partial`."""
        for path in partial(self.root, before):
            (self.root / path).unlink(missing_ok=True)

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
        done = [
            proof
            for proof in self._each(sorted(paths), lambda path: self._proven(path, send=True))
            if proof is not None
        ]
        self._complain("")
        return self._answer(copied=done.count("sent"), read=len(done))

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
            (
                sorted(self.missing),
                "are here and not in the store: it has lost them, or they were deleted there",
                "media_store.settle sends them, or remove them here too",
            ),
        ]
        said = [
            f"{len(paths)} files {what}: {names(paths)}; {do}, then run this again"
            for paths, what, do in rows
            if paths
        ]
        if said:
            raise Failed(". ".join(said) + more)

    def _proven(self, path: str, *, send: bool) -> Proof | None:
        """The store's bytes are the file's, by reading them; None: the file went, or just stays.

        :param send: whether a file that the store has no object of is sent.
        """
        entry = self._hashed(path)
        if entry is None:
            return None
        beginning = Beginning(entry.size)
        found = self.store.read(path, beginning)
        known = self.manifest.known.get(path)
        verdict = judged(entry, found, known, begins=beginning.is_of(entry))
        if verdict == "same":
            self.manifest.put(path, replace(entry, verified="read"))
            return "same"
        if verdict == "missing" and not send:
            return "missing"
        if verdict != "missing" and self.counts == "store":
            if verdict == "broken":
                (self.root / path).unlink(missing_ok=True)
                self.broken += 1
            else:
                self.differing.append(path)
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
        return "sent"

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
            with tempfile.NamedTemporaryFile(
                dir=target.parent, prefix=PARTIAL, delete=False
            ) as file:
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

    def _remove_all(self, files: Mapping[str, File]) -> None:
        """Remove those that the store has."""
        for size in self._each(files, lambda path: self._remove(path, files[path])):
            self.removed += [] if size is None else [size]

    def _remove(self, path: str, file: File) -> int | None:
        """Remove a file; its size, or None if it stays or was broken."""
        proof = self._proven(path, send=self.sends)
        if proof is None:
            return None
        try:
            with open(self.root / path, "rb", opener=_unnoticed) as held:
                # Synapse's process has it in use (saltworks_media_local.py).
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if described(os.fstat(held.fileno())) != file:
                    return None
                if proof == "missing":
                    self.missing.append(path)
                # In the store for a while already it can go, sent only now it can the next time.
                if proof != "same":
                    return None
                os.unlink(self.root / path)
        except (FileNotFoundError, BlockingIOError):
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


def report(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How the cache is; nothing is waited for, and the store not asked.

    :returns: ``files`` and ``bytes`` there are; ``unverified`` and ``unverified_bytes`` of them:
        this machine has not read their object yet, as it does before one goes; ``cache``: its
        bounds; ``free`` of the file system; ``last``: see :func:`noted`, None when there was none.
    """
    root, manifest = Path(settings["media"]), Path(settings["manifest"])
    local = walked(root)
    seen = settled(local, Manifest(manifest).read())
    disk = shutil.disk_usage(root if root.is_dir() else manifest.parent)
    try:
        last = json.loads(manifest.with_name(PRUNED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        last = None
    return {
        "files": len(local),
        "bytes": sum(file.size for file in local.values()),
        "unverified": len(local) - len(seen),
        "unverified_bytes": sum(file.size for path, file in local.items() if path not in seen),
        "cache": dict(settings["cache"]),
        "free": disk.free,
        "last": last,
    }


def noted(path: Path, media: Media, error: str) -> None:
    """Write down what a pruning did: ``at``, ``pruned`` files, ``bytes``, and so on."""
    left = walked(media.root).values()
    row = {
        "at": time.time(),
        "pruned": len(media.removed),
        "bytes": sum(media.removed),
        "broken": media.broken,
        "missing": len(media.missing),
        "left_bytes": sum(file.size for file in left),
        "error": error,
    }
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(json.dumps(row), encoding="utf-8")
    os.replace(temporary, path)


def worked(given: argparse.Namespace, settings: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """An act that works on the media, alone; its answer.

    :raises Failed: see there; or another run has the media for too long.
    """
    store = Store(settings["store"], IMPATIENCE if given.act == "settle" else PATIENCE)
    with Manifest(Path(settings["manifest"])).opened() as manifest:
        media = Media(root, store, manifest, settings["counts"], settings["sends"])
        if given.act != "prune":
            answer: dict[str, Any] = getattr(media, given.act)()
            return answer
        cache = {
            key: settings["cache"][key] if (said := getattr(given, key)) is None else said
            for key in ("keep_bytes", "keep_seconds", "idle_seconds")
        }
        said = ""
        try:
            answer = media.prune(**cache)
        except BaseException as error:
            said = str(error) if isinstance(error, (Failed, OSError)) else repr(error)
            raise
        finally:
            noted(manifest.path.with_name(PRUNED), media, said)
        return answer


def run(argv: list[str]) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("settings", type=Path)
    acts = ("copy", "compare", "settle", "back", "prune", "leave", "report", "usage")
    parser.add_argument("act", choices=acts)
    for name in ("keep-bytes", "keep-seconds", "idle-seconds"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--seconds", type=float, default=USAGE_SECONDS)
    given = parser.parse_args(argv)
    begun = time.monotonic()
    try:
        settings = json.loads(given.settings.read_text(encoding="utf-8"))
        root = Path(settings["media"])
        # Where there never was more than a cache Synapse makes it with the first file.
        if not root.is_dir() and settings["sends"]:
            raise Failed(f"the media folder {root} is not there")
        if given.act == "report":
            answer = report(settings)
        elif given.act == "usage":
            answer = Store(settings["store"], IMPATIENCE).usage(given.seconds)
        else:
            answer = worked(given, settings, root)
    except (Failed, OSError) as error:
        print(json.dumps({"error": str(error)}))
        return 1
    print(json.dumps({**answer, "seconds": round(time.monotonic() - begun, 3)}))
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
