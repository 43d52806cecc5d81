"""A master and a minion of a test's own, as plain processes, on this project's tree.

The tree is made of links to the checkout, with a folder ``pillar`` of its own; the master is
set up by the project's own ``salt/master.d``, with the paths of that tree in place of
``/srv/saltworks``. Nothing is shared with a Salt of this machine, and root is not needed.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import salt.cache
import yaml
from saltworks import bank
from saltworks.vault import Vault

from tests.lab.driver import PROJECT
from tests.lab.driver.saltanswer import parse_json
from tests.render.stages import MAP

#: Id of the master as Salt makes it of the host's name, and of the one minion there is: the
#: server as found.
MASTER, MINION = "salt_master", "legacy"

#: How long a program may take on a busy machine, in seconds.
PATIENCE = 90

#: What Salt writes down of its own while it only answers.
OWN = ("cache", "logs", "run", "tokens", "scripts")

SECRETS = (
    "signing_key",
    "tls_certificate",
    "tls_key",
    "macaroon_secret_key",
    "registration_shared_secret",
    "transfer_media_private",
    "transfer_media_public",
    "transfer_database_private",
    "transfer_database_public",
)


@dataclass(frozen=True)
class Answer:
    """What a call ended with.

    :param code: the program's exit code.
    :param data: what it answered.
    :param text: all that it printed, for what a person would look for.
    """

    code: int
    data: Any
    text: str


@dataclass(frozen=True)
class House:
    """A tree with a running master and minion.

    :param top: the folder of it all.
    :param factories: the fixture ``salt_factories``.
    :param master: its daemon.
    :param minion: the minion's.
    """

    top: Path
    factories: Any
    master: Any
    minion: Any

    @property
    def tree(self) -> Path:
        return self.top / "tree"

    @property
    def found(self) -> Path:
        """The home of the server as found."""
        return self.top / "found"

    @property
    def vault(self) -> Vault:
        return Vault(self.tree / "pillar" / "secrets.sls", Path(self.master.config_dir) / "gpgkeys")

    @property
    def records(self) -> Path:
        return self.top / "records"

    def run(self, function: str, *args: str, master_d: Mapping[str, Any] | None = None) -> Answer:
        """``salt-run``, as an operator types it.

        :param master_d: settings in place of the running master's, for this call alone.
        """
        words: list[str] = []
        if master_d is not None:
            folder = self.top / "other"
            folder.mkdir(exist_ok=True)
            opts = yaml.safe_load((Path(self.master.config_dir) / "master").read_text())
            (folder / "master").write_text(yaml.safe_dump({**opts, **master_d}))
            words = [f"--config-dir={folder}"]
        return self._answer(self.master.salt_run_cli(), *words, function, *args)

    def pillar(self, minion: str) -> dict[str, Any]:
        """The pillar that the master would hand to a minion of this id."""
        pillar: dict[str, Any] = self.run("pillar.show_pillar", minion).data
        return pillar

    def ask(self, function: str, *args: str) -> Any:
        """The minion's answer, over the wire."""
        return self._answer(self.master.salt_cli(), function, *args, minion_tgt=MINION).data[MINION]

    def declare(self, cmap: Mapping[str, Any] | None) -> None:
        """Write the cluster map, or take it away."""
        path = self.tree / "pillar" / "cluster.sls"
        path.unlink(missing_ok=True)
        if cmap is not None:
            path.write_text(yaml.safe_dump({"cluster": dict(cmap)}))

    def record(self, key: str, row: Mapping[str, Any]) -> None:
        """Write a record as a runner would."""
        bank.write(self._store(), key, row)

    def recorded(self, key: str) -> dict[str, Any]:
        return bank.read(self._store(), key)

    def forget(self) -> None:
        """No map, no secret, no record, as after the first ``git clone``."""
        self.declare(None)
        self.vault.path.unlink(missing_ok=True)
        shutil.rmtree(self.records, ignore_errors=True)
        shutil.rmtree(self.found, ignore_errors=True)

    def everything(self) -> dict[str, tuple[int, int, bytes]]:
        """Mode, time of change and content of every file here that is not Salt's own."""
        return {
            str(path): (path.stat().st_mode, path.stat().st_mtime_ns, path.read_bytes())
            for path in sorted(self.top.rglob("*"))
            if path.is_file() and not set(path.relative_to(self.top).parts[:-1]) & set(OWN)
        }

    def _store(self) -> Any:
        return salt.cache.Cache(self.master.config, cachedir=str(self.records), driver="localfs")

    @staticmethod
    def _answer(cli: Any, *words: str, **more: str) -> Answer:
        done = cli.run(*words, _timeout=PATIENCE, **more)
        try:
            data = parse_json(done.stdout)
        except ValueError:
            data = done.stdout
        return Answer(done.returncode, data, f"{json.dumps(data)}\n{done.stderr}")


def sqlite_map(found: Path) -> dict[str, Any]:
    """A map whose server as found keeps its data in a file below ``found``."""
    database = {"engine": "sqlite3", "path": f"{found}/h.db"}
    place = {"config_path": f"{found}/homeserver.yaml", "database": {"engine": "sqlite3"}}
    return {
        **MAP,
        "synapse": {**MAP["synapse"], "database": database},
        "legacy": {**MAP["legacy"], **place},
        "backup": {"directory": f"{found}/backups"},
    }


@contextlib.contextmanager
def house(
    top: Path, factories: Any, *, joins: bool = False, faked: Path | None = None
) -> Iterator[House]:
    """Make the tree, start master and minion, end both.

    :param top: an empty folder, with a short path: sockets lie below it.
    :param factories: the fixture ``salt_factories``.
    :param joins: the master reacts to machines that ask to join, and no other key than the
        minion's is accepted by itself.
    :param faked: a folder with files that are served in place of the project's own.
    """
    tree = top / "tree"
    (tree / "pillar").mkdir(parents=True)
    for name in ("salt", "formulas", "orch", "reactor"):
        (tree / name).symlink_to(PROJECT / name)
    shutil.copytree(PROJECT / "pillar" / "schema", tree / "pillar" / "schema")
    opts: dict[str, Any] = {"auto_accept": not joins}
    for name in ("saltworks.conf", *(["join.conf"] if joins else [])):
        text = (PROJECT / "salt/master.d" / name).read_text()
        opts |= yaml.safe_load(text.replace("/srv/saltworks", str(tree)))
    if faked is not None:
        opts["file_roots"]["base"].insert(0, str(faked))
    opts["ext_pillar"][0]["saltworks"]["records"] = str(top / "records")
    master = factories.salt_master_daemon(
        MASTER,
        defaults={"root_dir": str(top / "master")},
        overrides={**opts, **quiet("master"), "enable_fqdns_grains": False},
        on_auth_event_callback=_accepts_the_minion,
    )
    minion = master.salt_minion_daemon(
        MINION,
        defaults={"root_dir": str(top / "minion")},
        overrides={**quiet("minion"), "enable_fqdns_grains": False, "mine_enabled": False},
    )
    with contextlib.ExitStack() as running:
        running.callback(
            subprocess.run,
            ["gpgconf", "--homedir", str(Path(master.config_dir) / "gpgkeys"), "--kill", "all"],
            check=False,
            timeout=PATIENCE,
        )
        running.enter_context(master.started(start_timeout=PATIENCE))
        running.enter_context(minion.started(start_timeout=PATIENCE))
        yield House(top, factories, master, minion)


def _accepts_the_minion(daemon: Any, event: Mapping[str, Any]) -> None:
    """The factories would accept every key that waits."""
    if event.get("id") == MINION:
        daemon._on_auth_event(event)


def quiet(role: str) -> dict[str, Any]:
    # What the daemons log is in their own files; pytest is not told each line of it.
    return {f"pytest-{role}": {"log": {"disabled": True}}, "log_level_logfile": "info"}
