"""Synapse's media in an S3 store: synapse-s3-storage-provider, with what it cannot be told.

- Its requests end in time, so that an upload fails soon when the store is down.
- The store's certificate is checked against the project's own authority, and nobody else's
  requests are (the environment's ``AWS_CA_BUNDLE`` would be for all).
- An object is fetched whole before any of it is given on. Synapse keeps what it gets of a
  provider that fails half-way, and would serve that half from then on.
- The local folder is a cache (saltworks_media_local.py).
"""

from __future__ import annotations

import tempfile
from typing import Any, BinaryIO

import saltworks_media_local
from botocore.config import Config
from botocore.exceptions import ClientError
from s3_storage_provider import S3StorageProviderBackend
from saltworks_media_tls import ready
from synapse.media.media_storage import FileResponder

#: In seconds, and how often: an upload to a dead store fails within half a minute.
CONNECT_SECONDS, ANSWER_SECONDS, ATTEMPTS = 3, 10, 2


class Provider(S3StorageProviderBackend):
    """The provider; ``ca`` in its config is the authority's certificate, a path."""

    def __init__(self, hs: Any, config: dict[str, Any]) -> None:
        super().__init__(hs, config)
        saltworks_media_local.take_over()
        self._hs = hs
        self.api_kwargs["verify"] = config["ca"]
        self.api_kwargs["config"] = self.api_kwargs["config"].merge(
            Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=ANSWER_SECONDS,
                retries={"total_max_attempts": ATTEMPTS, "mode": "standard"},
                s3={"addressing_style": "path"},
                max_pool_connections=40,
            )
        )
        ready(self._get_s3_client())

    @staticmethod
    def parse_config(config: dict[str, Any]) -> dict[str, Any]:
        """As the provider's own, and ``ca``."""
        parsed: dict[str, Any] = S3StorageProviderBackend.parse_config(config)
        return {**parsed, "ca": str(config["ca"])}

    async def fetch(self, path: str, file_info: Any) -> FileResponder | None:
        """The whole object, from a file that has no name; None when there is none."""
        found = await self._module_api.defer_to_threadpool(self._s3_pool, self._whole, path)
        return None if found is None else FileResponder(self._hs, found)

    def _whole(self, path: str) -> BinaryIO | None:
        file: BinaryIO = tempfile.TemporaryFile(dir=self.cache_directory)  # noqa: SIM115
        try:
            answer = self._get_s3_client().get_object(Bucket=self.bucket, Key=self.prefix + path)
            for block in answer["Body"].iter_chunks(1 << 20):
                file.write(block)
        except ClientError as error:
            file.close()
            if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                return None
            raise
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file
