"""Backups of the database's cluster: into the store that has the media, as M5 will into S3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import backups
from ...clustermap import Map
from ...plan import Placement, Secrets
from .. import media
from .common import CLUSTER, PORT, database

#: Made with the first machine's certificate: name to length in letters.
SECRETS: Mapping[str, int] = {"backup_cipher": 64}

#: Unit that runs PostgreSQL.
UNIT = "patroni"


def pillar(cmap: Map, placement: Placement, secret: Secrets) -> dict[str, Any]:
    """The pillar ``pgbackrest`` of a machine of the cluster."""
    name, _ = database(cmap)
    return backups.pgbackrest_pillar(
        endpoint=f"{placement.media}:{media.PORT}",
        bucket=media.DATABASE_BUCKET,
        region=media.REGION,
        uri_style="path",
        access_key=secret("media_access_key"),
        secret_key=secret("media_secret_key"),
        authority=secret("pki_authority"),
        cipher_pass=secret("backup_cipher"),
        database=name,
        cluster=CLUSTER,
        unit=UNIT,
        port=PORT,
        stated=cmap["database"].get("backup"),
    )
