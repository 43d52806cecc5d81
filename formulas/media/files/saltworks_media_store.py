"""The S3 store of the media, by the boto3 of Synapse's release."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Protocol

from saltworks_media_tree import DIRECTORIES, Failed, Stored, ledger

#: At once; each is a connection to the store.
THREADS = 8

BLOCK = 1 << 20

#: For a connection and for an answer, in seconds, and how often: the storage machine may have to
#: read a large file before it answers. While people wait in front of the door a store that does
#: not answer must be given up soon.
PATIENCE = {"connect": 5, "answer": 120, "attempts": 3}
IMPATIENCE = {"connect": 3, "answer": 10, "attempts": 1}

#: S3 has no word for the commonest reason.
FULL = " (is its disk full? See df there)"

#: Files from this size on are sent in parts of it.
PART = 16 << 20


class Takes(Protocol):
    """Takes an object's bytes."""

    def write(self, block: bytes, /) -> int: ...


class Store:
    """The bucket.

    :param settings: ``endpoint``, ``ca``, ``access_key``, ``secret_key``, ``bucket``, and of the
        storage machine's list ``ledger_bucket`` and ``ledger_key``.
    """

    def __init__(self, settings: Mapping[str, Any], patience: Mapping[str, int]) -> None:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
        from saltworks_media_tls import ready

        self.settings = settings
        self._errors = (BotoCoreError, ClientError)
        self._refused = ClientError
        client = boto3.client(
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
        self._client = ready(client)

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

    def read(self, path: str, into: Takes | None = None) -> Stored | None:
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

    def usage(self, seconds: float) -> dict[str, Any]:
        """How many objects there are, and their bytes, by listing them.

        One request for each folder ``local_content/ab`` and each server of remote media, and one
        more for each thousand objects in it, :data:`THREADS` at a time. Not the bucket as a whole:
        ``rclone serve s3`` walks all of what it is asked for again with each page (20 000 objects:
        20 walks), and there the pages can be asked for one after the other only.

        :param seconds: after which no further request is made.
        :returns: ``objects``, ``bytes``, ``requests``, and ``whole``: whether that is all of them.
        :raises Failed: the store does not answer.
        """
        end = time.monotonic() + seconds
        total = {"objects": 0, "bytes": 0, "requests": 0, "whole": True}

        def add(row: Mapping[str, Any]) -> None:
            for key in ("objects", "bytes", "requests"):
                total[key] += row[key]
            total["whole"] = total["whole"] and row["whole"]

        with self._saying("does not list", "its objects"):
            folders: list[str] = []
            for name in DIRECTORIES:
                row = self._listed(f"{name}/", "/", end)
                add(row)
                folders += row["folders"]
            with ThreadPoolExecutor(THREADS) as pool:
                for row in pool.map(lambda name: self._listed(name, "", end), folders):
                    add(row)
        return total

    def _listed(self, prefix: str, delimiter: str, end: float) -> dict[str, Any]:
        """What lies below a folder; with a delimiter its folders are not looked into."""
        row: dict[str, Any] = {
            "objects": 0, "bytes": 0, "requests": 0, "folders": [], "whole": False,
        }
        more: dict[str, Any] = {"Delimiter": delimiter} if delimiter else {}
        while time.monotonic() < end:
            page = self._client.list_objects_v2(
                Bucket=self.settings["bucket"], Prefix=prefix, **more
            )
            found = page.get("Contents", [])
            row["requests"] += 1
            row["objects"] += len(found)
            row["bytes"] += sum(item["Size"] for item in found)
            row["folders"] += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
            if not page.get("IsTruncated"):
                return {**row, "whole": True}
            more["ContinuationToken"] = page["NextContinuationToken"]
        return row

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
