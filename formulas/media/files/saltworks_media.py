"""The media tree of Synapse and its copy in an S3 store: copy, compare, fetch back, prune.

Run by the Python of Synapse's release, whose boto3 it uses, as Synapse's user:

    python saltworks_media.py <settings.json> copy|compare|settle|back|prune [options]

Until the media have moved the local tree is what counts, and the store becomes like it. From then
on the store counts (``counts`` in the settings): nothing in it is overwritten any more.

What is known of each file lies in the manifest, one JSON object a line: ``path``, ``size``,
``mtime`` (of the local file, in nanoseconds), ``sha256``, and ``verified``: how the store's bytes
were seen to be the same. ``disk``: by the storage machine's own hash of its file; ``read``: by
reading the object back; empty: only sent yet. The answer is one JSON object on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

#: What the storage provider stores. Everything else, the cache of URL previews above all, is of
#: this machine alone and is never copied, compared or pruned.
DIRECTORIES = ("local_content", "local_thumbnails", "remote_content", "remote_thumbnail")

#: At once; each is a connection to the store.
THREADS = 8

#: How often a file that changes while it is read is read again.
TRIES = 3
PAUSE_SECONDS = 0.5

BLOCK = 1 << 20

#: For a connection and for an answer, in seconds, and how often: the storage machine may have to
#: read a large file before it answers. While people wait in front of the door a store that does
#: not answer must be given up soon.
PATIENCE = {"connect": 5, "answer": 120, "attempts": 3}
IMPATIENCE = {"connect": 3, "answer": 10, "attempts": 1}

#: How long another run may keep the manifest, in seconds.
LOCK_SECONDS = 30

#: S3 has no word for the commonest reason.
FULL = " (is its disk full? See df there)"

#: Files from this size on are sent in parts of it.
PART = 16 << 20

#: How many names an answer lists.
NAMES = 20


class Failed(Exception):
    """Ends the run; the text is the operator's."""


@dataclass(frozen=True)
class File:
    """A file of the local tree. used: when it was last written or read, in seconds."""

    size: int
    mtime: int
    used: float


@dataclass(frozen=True)
class Entry:
    """What is known of a file, see above."""

    size: int
    mtime: int
    sha256: str
    verified: str = ""

    def is_of(self, file: File) -> bool:
        """Whether the local file is still the one that this was written down of."""
        return (self.size, self.mtime) == (file.size, file.mtime)


@dataclass(frozen=True)
class Stored:
    """An object's bytes, by the storage machine or as they were read."""

    size: int
    sha256: str


def to_copy(local: Mapping[str, File], known: Mapping[str, Entry]) -> list[str]:
    """Files that were never sent, or have changed since."""
    return sorted(
        path for path, file in local.items() if path not in known or not known[path].is_of(file)
    )


def settled(local: Mapping[str, File], known: Mapping[str, Entry]) -> set[str]:
    """Files of which it was seen that the store has the same bytes."""
    return {
        path
        for path, file in local.items()
        if path in known and known[path].verified and known[path].is_of(file)
    }


def same(
    local: Mapping[str, File], known: Mapping[str, Entry], store: Mapping[str, Stored]
) -> set[str]:
    """Files whose bytes the storage machine has hashed to the same."""
    return {
        path
        for path, file in local.items()
        if (entry := known.get(path)) is not None
        and entry.is_of(file)
        and store.get(path) == Stored(entry.size, entry.sha256)
    }


def to_fetch(local: Mapping[str, File], store: Mapping[str, Stored]) -> list[str]:
    """Objects that this machine has no file of."""
    return sorted(path for path in store if path not in local and is_media(path))


def to_prune(
    local: Mapping[str, File],
    *,
    keep_bytes: int,
    keep_seconds: float,
    idle_seconds: float,
    now: float,
) -> list[str]:
    """Which local files shall go, the longest unused first.

    :param keep_bytes: what all files together may take.
    :param keep_seconds: unused for longer than that they go whatever the room.
    :param idle_seconds: used within that they stay whatever the room.
    """
    left = sum(file.size for file in local.values())
    chosen = []
    for path, file in sorted(local.items(), key=lambda item: (item[1].used, item[0])):
        unused = now - file.used
        if unused < idle_seconds or (unused <= keep_seconds and left <= keep_bytes):
            break
        chosen.append(path)
        left -= file.size
    return chosen


def is_media(path: str) -> bool:
    """Whether a relative path is one of those that the provider stores."""
    steps = path.split("/")
    return steps[0] in DIRECTORIES and not any(step in ("", ".", "..") for step in steps)


def walked(root: Path) -> dict[str, File]:
    """Every regular file that the provider stores, by its path below the media folder."""
    found: dict[str, File] = {}
    waiting = [name for name in DIRECTORIES if (root / name).is_dir()]
    while waiting:
        folder = waiting.pop()
        try:
            rows = list(os.scandir(root / folder))
        except FileNotFoundError:
            # Synapse removes a folder with its last file.
            continue
        for row in rows:
            path = f"{folder}/{row.name}"
            if row.is_dir(follow_symlinks=False):
                waiting.append(path)
            elif row.is_file(follow_symlinks=False) and not row.name.startswith("."):
                with contextlib.suppress(FileNotFoundError):
                    found[path] = described(row.stat(follow_symlinks=False))
    return found


def described(status: os.stat_result) -> File:
    """What matters of a file."""
    used = max(status.st_mtime, status.st_atime)
    return File(status.st_size, status.st_mtime_ns, used)


def digest(file: BinaryIO) -> str:
    """SHA-256 of a file from where it stands."""
    return hashlib.file_digest(file, "sha256").hexdigest()


def ledger(lines: Iterable[bytes]) -> dict[str, Stored]:
    """The storage machine's list of its files, as ``storage.hash`` writes it.

    :raises Failed: when it does not end as a whole list ends.
    """
    found: dict[str, Stored] = {}
    end: dict[str, Any] = {}
    for line in lines:
        row = json.loads(line)
        if "path" in row:
            found[row["path"]] = Stored(row["size"], row["sha256"])
        else:
            end = row
    if end.get("files") != len(found):
        raise Failed("the storage machine's list of its files is not whole: run storage.hash there")
    return found


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


class Store:
    """The bucket.

    :param settings: ``endpoint``, ``ca``, ``access_key``, ``secret_key``, ``bucket``, and of the
        storage machine's list ``ledger_bucket`` and ``ledger_key``.
    """

    def __init__(self, settings: Mapping[str, Any], patience: Mapping[str, int]) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError

        self.settings = settings
        self._errors = (BotoCoreError, ClientError)
        self._refused = ClientError
        self._client = boto3.client(
            "s3",
            endpoint_url=settings["endpoint"],
            region_name="us-east-1",
            aws_access_key_id=settings["access_key"],
            aws_secret_access_key=settings["secret_key"],
            verify=settings["ca"] or None,
            config=Config(
                connect_timeout=patience["connect"],
                read_timeout=patience["answer"],
                retries={"total_max_attempts": patience["attempts"], "mode": "standard"},
                s3={"addressing_style": "path"},
                max_pool_connections=THREADS,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def put(self, path: str, file: BinaryIO) -> str:
        """Store a file.

        :returns: SHA-256 of what was sent.
        :raises Failed: the store does not take it.
        """
        target = {"Bucket": self.settings["bucket"], "Key": path}
        # From memory: a file that shrinks while it is sent would leave the store waiting.
        part = file.read(PART)
        total = hashlib.sha256(part)
        with self._saying("does not take", path, FULL):
            if len(part) < PART:
                self._client.put_object(Body=part, **target)
                return total.hexdigest()
            target["UploadId"] = self._client.create_multipart_upload(**target)["UploadId"]
            sent: list[dict[str, Any]] = []
            try:
                while part:
                    number = len(sent) + 1
                    answer = self._client.upload_part(Body=part, PartNumber=number, **target)
                    sent.append({"PartNumber": number, "ETag": answer["ETag"]})
                    part = file.read(PART)
                    total.update(part)
                self._client.complete_multipart_upload(MultipartUpload={"Parts": sent}, **target)
            except BaseException:
                with contextlib.suppress(*self._errors):
                    self._client.abort_multipart_upload(**target)
                raise
        return total.hexdigest()

    def read(self, path: str, into: BinaryIO | None = None) -> Stored | None:
        """Read an object to its end; None when there is none.

        :param into: gets its bytes.
        :raises Failed: it cannot be read.
        """
        total, size = hashlib.sha256(), 0
        with self._saying("does not give", path):
            body = self._body(self.settings["bucket"], path)
            if body is None:
                return None
            for block in body.iter_chunks(BLOCK):
                total.update(block)
                size += len(block)
                if into is not None:
                    into.write(block)
        return Stored(size, total.hexdigest())

    def ledger(self) -> dict[str, Stored]:
        """The storage machine's own list of its files and their hashes."""
        bucket, key = self.settings["ledger_bucket"], self.settings["ledger_key"]
        with self._saying("does not give", key):
            body = self._body(bucket, key)
            if body is None:
                raise Failed("the storage machine has no list of its files: run storage.hash there")
            return ledger(body.iter_lines(BLOCK))

    def _body(self, bucket: str, key: str) -> Any:
        try:
            return self._client.get_object(Bucket=bucket, Key=key)["Body"]
        except self._refused as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise

    @contextlib.contextmanager
    def _saying(self, what: str, path: str, hint: str = "") -> Iterator[None]:
        try:
            yield
        except self._errors as error:
            raise Failed(
                f"the store {self.settings['endpoint']} {what} {path}: {error}{hint}; see "
                "journalctl -u saltworks-storage there, then run this again, it goes on"
            ) from error


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


def names(paths: list[str]) -> str:
    """Some names, for a message."""
    more = f" and {len(paths) - NAMES} more" if len(paths) > NAMES else ""
    return ", ".join(paths[:NAMES]) + more


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
