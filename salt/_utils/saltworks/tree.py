"""The tree in use: where the map, the secrets and the records are, put together.

The one place that knows paths and Salt's cache; runners and the external pillar
are loaders over it.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import salt.cache
import yaml

from . import bank, clustermap, mutex, plan, registry, releases, slices, telling
from .errors import Problem, Refused
from .vault import Vault

#: Not in Salt's own cache, which people empty: without the record of where Synapse runs a
#: state run would start it where it was at first.
RECORDS = "/var/lib/saltworks"


class Tree:
    """A checkout of Saltworks on a master.

    :param root: the folder that holds ``pillar``, ``salt``, ``formulas``, ``orch``.
    :param opts: the master's options.
    :param records: the folder of what runners write down.
    """

    def __init__(
        self, root: str | os.PathLike[str], opts: Mapping[str, Any], records: str = RECORDS
    ) -> None:
        self.root = Path(root)
        self.records = records
        self.opts = opts
        self.map_path = self.root / "pillar" / "cluster.sls"
        self.vault = Vault(
            self.root / "pillar" / "secrets.sls",
            Path(opts.get("gpg_keydir") or Path(opts["config_dir"]) / "gpgkeys"),
        )
        self.store = salt.cache.Cache(opts, cachedir=records, driver="localfs")
        #: Where the builder puts releases; served as ``salt://releases``.
        self.artifacts = Path(plan.ARTIFACTS_DIR)
        #: Id under which an orchestration's own pillar is compiled.
        self.master_minion = f"{opts['id'].removesuffix('_master')}_master"

    @classmethod
    def of(cls, opts: Mapping[str, Any]) -> Tree:
        """The tree that the master's ``ext_pillar`` option names.

        :raises Refused: when the master is not set up for Saltworks.
        """
        for row in opts.get("ext_pillar", []):
            if isinstance(row, Mapping) and "saltworks" in row:
                return cls(opts=opts, **row["saltworks"])
        raise Refused(
            "master",
            [
                Problem(
                    "master configuration",
                    "ext_pillar does not name saltworks",
                    "put the files of salt/master.d into the master's master.d and restart it",
                )
            ],
        )

    @contextlib.contextmanager
    def changing(self, key: str) -> Iterator[dict[str, Any]]:
        """One record, written back when the block ends if it was changed in it.

        Nobody else changes a record this way meanwhile; a block that raises writes nothing.

        :raises Refused: others held the records' mutex too long.
        """
        with mutex.held(Path(self.records) / "records.mutex"):
            row = bank.read(self.store, key)
            before = copy.deepcopy(row)
            yield row
            if row != before:
                bank.write(self.store, key, row)

    def user_data(self, pattern: str) -> Path:
        """The file with the user-data of an invite, as long as that stands."""
        # No minion id ends with a dash, so none has a pattern's file.
        return Path(self.records) / "user-data" / f"{pattern.removesuffix('*')}.yaml"

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the cluster map."""
        return clustermap.schema(self.root / "pillar" / "schema" / "cluster.schema.json")

    def raw_map(self) -> Any:
        """The cluster map as written, unchecked; None when there is none.

        :raises Refused: when it is no YAML.
        """
        if not self.map_path.exists():
            return None
        try:
            loaded = yaml.safe_load(self.map_path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise Refused(
                "cluster map",
                [Problem(str(self.map_path), f"is no YAML: {error}", "correct that line")],
            ) from error
        return loaded.get("cluster") if isinstance(loaded, Mapping) else loaded

    def map(self) -> clustermap.Map | None:
        """The checked cluster map, None when there is none yet.

        :raises Refused: with everything that is wrong with it.
        """
        cmap = self.raw_map()
        if cmap is None:
            return None
        wrong = clustermap.problems(cmap, self.schema(), secrets=self.vault.names())
        if wrong:
            raise Refused("cluster map", wrong)
        checked: clustermap.Map = cmap
        return checked

    def placement(self, cmap: clustermap.Map) -> plan.Placement:
        """Where things stand, as recorded.

        :raises Refused: when the record is lost; nothing may be guessed about it.
        """
        row = bank.read(self.store, "placement")
        if not row:
            say = "salt-run placement.put synapse=<machine> front=<machine> managed=<True after M1>"
            raise Refused(
                "placement",
                [Problem(self.records, "the record of where Synapse runs is gone", say)],
            )
        members = registry.of(bank.read(self.store, registry.RECORD))
        told = bank.read(self.store, telling.TOLD)
        return replace(
            plan.Placement.recorded(cmap, row),
            members=tuple(members.values()),
            telling=tuple(sorted(told)),
            stopped=telling.stopped(told),
        )

    def artifact(self, cmap: clustermap.Map) -> dict[str, str] | None:
        """Source and hash of the release built from today's lock, None until it is built.

        Archives of earlier locks of the same version may lie beside it.
        """
        version = cmap["releases"]["synapse"]
        lock = releases.lock(self.root, version)
        if not lock.exists():
            return None
        name = releases.archive_pattern(version, lock.read_bytes())
        for checksum in sorted(self.artifacts.glob(f"{name}.sha256")):
            words = checksum.read_text(encoding="ascii").split()
            archive = checksum.with_suffix("")
            # The builder writes the hash last; one without both is a build that was cut.
            if words and archive.exists():
                return {
                    "source": f"salt://releases/{archive.name}",
                    "source_hash": f"sha256={words[0]}",
                }
        return None

    def slice(self, minion: str) -> dict[str, Any]:
        """One machine's slice of the plan."""
        cmap = self.map()
        if cmap is None:
            return {}
        return slices.slice_for(
            cmap,
            self.placement(cmap),
            minion,
            self.vault.get,
            artifact=self.artifact(cmap),
            host_keys=bank.read(self.store, "host_keys"),
        )

    def master_slice(self) -> dict[str, Any]:
        """What orchestrations are rendered with; see :func:`slices.for_orchestrations`."""
        try:
            cmap = self.map()
        except Refused:
            # The precheck says what is wrong, and nothing else is done before it.
            cmap = None
        placement = self.placement(cmap) if cmap is not None else None
        record = bank.read(self.store, "milestones")
        return slices.for_orchestrations(cmap, placement, record)
