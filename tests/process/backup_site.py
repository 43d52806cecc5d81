"""A PostgreSQL that is backed up by the formula's configuration into a real store over TLS."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from saltworks import backups, pki, plan

from tests.process import postgres, store
from tests.process.front_door import free_ports, wait_for
from tests.render import trees
from tests.unit.house import House

Json = dict[str, Any]


@dataclass
class Site:
    """Cluster, configuration and store.

    :param at: the cluster, as ``postgres.cluster`` gives it.
    :param salt: the modules, whose service manager is pg_ctl.
    """

    top: Path
    at: Json
    salt: Json
    port: int
    #: Whether the machine's next start starts the server; whether it is the unit's that runs.
    enabled: bool = True
    active: bool = True

    @property
    def settings(self) -> str:
        return f"{self.top}/pgbackrest.json"

    @property
    def bucket(self) -> Path:
        return self.top / "store" / "database"

    @contextlib.contextmanager
    def store(self) -> Iterator[None]:
        """The store runs within the block."""
        with store.serving(self.top, self.port, (self.top / "tls.crt", self.top / "tls.key")):
            yield

    def call(self, name: str, *args: Any, **more: Any) -> Any:
        """A function of the modules, with this site's settings."""
        return self.salt[name](*args, **more, path=self.settings)

    def report(self) -> Json:
        said: Json = self.call("pgbackrest.report")
        return said

    def psql(self, script: str, database: str = "synapse") -> str:
        return postgres.psql(self.at, script, database)

    def note(self, word: str) -> str:
        """A row, and a time after it is committed and before any other is."""
        self.psql(f"INSERT INTO notes VALUES ('{word}');")
        time.sleep(0.05)
        when = self.psql("SELECT to_json(clock_timestamp());").strip('"')
        time.sleep(0.05)
        return when

    def notes(self) -> list[str]:
        return self.psql("SELECT word FROM notes ORDER BY word;").split()

    def spans(self) -> list[backups.Span]:
        store_ = self.report()["store"]
        return backups.spans(store_["backups"], store_["stretches"])

    def begin(self, word: str) -> subprocess.Popen[str]:
        """The formula's program, as the timer's service starts it."""
        here = json.loads(Path(self.settings).read_text())
        return subprocess.Popen(
            ["/usr/bin/python3", here["program"], self.settings, word],
            stdout=subprocess.PIPE, text=True, **self.salt["pgcluster.identity"](here["os_user"]),
        )  # fmt: skip

    def nightly(self) -> Json:
        with self.begin("nightly") as process:
            said, _ = process.communicate(timeout=120)
        done: Json = json.loads(said)
        return done

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """Somebody uses the database."""
        words = ["-X", "-h", self.at["socket"], "-p", str(self.at["port"]), "-d", "synapse"]
        with subprocess.Popen(
            [f"{self.at['bindir']}/psql", *words, "-c", "SELECT pg_sleep(60);"],
            stdout=subprocess.DEVNULL, **self.salt["pgcluster.identity"](self.at["os_user"]),
        ) as process:  # fmt: skip
            asked = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)%';"
            wait_for("a connection", lambda: int(self.psql(asked, "postgres")) > 1)
            yield
            process.terminate()

    def source(self, target: str) -> backups.Source:
        """As the master decides it."""
        said = self.report()
        rows = said["store"]["backups"], said["store"]["stretches"]
        return backups.source(target, *rows, time.time(), "error" not in said["server"])

    def restore(self, target: str) -> Json:
        found = self.source(target)
        done: Json = self.call(
            "pgpitr.restore", target, found.label, found.timeline, found.bytes
        )
        return done

    def anew(self) -> None:
        """Another cluster in place of this one."""
        shutil.rmtree(self.at["data"])
        initdb = ["-A", "peer", "--locale=C", "-E", "UTF8", "-N"]
        postgres.as_user(self.at, "mkdir", "-m", "0700", f"{self.at['top']}/run/data")
        os.rename(f"{self.at['top']}/run/data", self.at["data"])
        postgres.as_user(self.at, f"{self.at['bindir']}/initdb", "-D", self.at["data"], *initdb)

    def service(self, word: str) -> None:
        """As a service manager: what runs is not started again."""
        self.active = word == "start"
        if (self.salt["pgcluster.condition"](self.at["data"]) == "gone") == (word == "stop"):
            return
        start = ["-o", f"-c config_file={self.at['config']}/postgresql.conf"]
        options = [*start, "-l", f"{self.at['top']}/run/log"] if word == "start" else ["-m", "fast"]
        postgres.as_user(
            self.at, f"{self.at['bindir']}/pg_ctl", "-D", self.at["data"], *options, "-w", word
        )


    def runs(self) -> bool:
        """Whether the unit is active; a server of somebody else is not its own."""
        return self.active and self.salt["pgcluster.condition"](self.at["data"]) != "gone"


@contextlib.contextmanager
def site(renderer: trees.Renderer, **stated: Any) -> Iterator[Site]:
    """All of it, with a database of Synapse's shape; the store is not running yet.

    :param stated: as ``backups.pgbackrest_pillar`` takes it.
    """
    top = Path(tempfile.mkdtemp(prefix="saltworks-backup-", dir="/dev/shm"))
    os.chmod(top, 0o755)
    (top / "store" / "database").mkdir(parents=True)
    (port,) = free_ports(1)
    now = datetime.now(UTC)
    authority, authority_key = pki.make_authority("tests", now)
    crt, key = pki.issue(authority, authority_key, ["localhost"], now)
    for name, text in {"tls.crt": crt, "tls.key": key, "authority.pem": authority}.items():
        (top / name).write_text(text)
    conf = top / "pgbackrest.conf"
    values = backups.archive_settings("localhost", port)
    archive = "".join(
        f"{key} = '{value.replace('pgbackrest', f'pgbackrest --config={conf}', 1)}'\n"
        for key, value in values.items()
    )
    # Where it switches of itself, a test could not say what has arrived when.
    archive += "archive_timeout = 0\nwal_level = replica\n"
    try:
        with postgres.cluster(port=free_ports(1)[0], where=str(top), config=archive) as at:
            salt = postgres.loaded()
            here = Site(top, at, salt, port)
            salt |= {
                "service.start": lambda name: here.service("start"),
                "service.stop": lambda name: here.service("stop"),
                "service.status": lambda name: here.runs(),
                "service.enabled": lambda name: here.enabled,
                "service.enable": lambda name: setattr(here, "enabled", True),
                "service.disable": lambda name: setattr(here, "enabled", False),
            }
            configured(renderer, here, conf, authority, stated)
            postgres.psql(at, "CREATE DATABASE synapse;")
            here.psql(
                "CREATE TABLE notes (word text); CREATE TABLE e2e_one_time_keys_json (n integer);"
                "CREATE TABLE users (name text, password_hash text, admin int, deactivated int);"
            )
            yield here
    finally:
        shutil.rmtree(top, ignore_errors=True)


def configured(
    renderer: trees.Renderer, here: Site, conf: Path, authority: str, stated: Json
) -> None:
    """The formula's files for a site, at its own folders."""
    row = backups.pgbackrest_pillar(
        endpoint=f"localhost:{here.port}", bucket="database", region="us-east-1", uri_style="path",
        access_key=store.KEYS[0], secret_key=store.KEYS[1], authority=authority,
        cipher_pass="a passphrase of the tests", database="synapse", port=here.at["port"],
        stated=stated,
    )  # fmt: skip
    (path,) = [path for sls, path in trees.sls_files().items() if sls == "pgbackrest.configured"]
    cases = {"default": {"real": {"pillar": {"pgbackrest": row}}}}
    (case,) = trees.cases_for("pgbackrest.configured", path, cases)
    own = {
        "/etc/pgbackrest/authority.pem": f"{here.top}/authority.pem",
        "/etc/pgbackrest/pgbackrest.conf": str(conf),
        "/var/lib/postgresql/15/main": here.at["data"],
        "/etc/postgresql/15/main": here.at["config"],
        "/usr/lib/postgresql/15/bin": here.at["bindir"],
        "/var/run/postgresql": here.at["socket"],
        "/opt/saltworks/pgbackrest": str(trees.FORMULAS / "pgbackrest/files"),
        "/var/lib/saltworks/pgbackrest": f"{here.top}/scratch",
    }
    for name in ("spool", "lock", "log"):
        folder = here.top / name
        folder.mkdir()
        shutil.chown(folder, here.at["os_user"])
        below = {"spool": "/var/spool/pgbackrest", "log": "/var/log/pgbackrest"}
        own[below.get(name, "/var/lib/pgbackrest/lock")] = str(folder)
    for chunk in renderer.compile(case):
        name = str(chunk["name"])
        if not name.endswith(("pgbackrest.conf", "pgbackrest.json")):
            continue
        text = renderer.template(case, chunk["source"], {})
        for told, real in own.items():
            text = text.replace(told, real)
        # A store that is gone is given up sooner.
        text = text.replace("io-timeout=20", "io-timeout=2\narchive-timeout=10")
        if name.endswith(".json"):
            text = json.dumps({**json.loads(text), "os_user": here.at["os_user"],
                               "records": f"{here.top}/records"})
        (here.top / Path(name).name).write_text(text)


def found(folder: Path, word: str) -> list[str]:
    """Files with a text in them."""
    done = subprocess.run(
        ["grep", "-rlaF", word, str(folder)], capture_output=True, text=True, check=False
    )
    return done.stdout.split()


class Operator(House):
    """The runner ``backup`` over one machine, which is the site."""

    def __init__(self, site: Site) -> None:
        super().__init__("backup")
        self.site = site
        vars(self.module).update(__opts__={}, Machines=lambda opts: self)

    def map(self) -> Any:
        return {"machines": {"database": {"role": "database"}}}

    def placement(self, cmap: Any) -> plan.Placement:
        return plan.Placement("synapse", True, "proxy", database="database")

    def calls(self, names: list[str], function: str, *args: Any, **kwargs: Any) -> Json:
        if function.startswith("saltutil."):
            return {name: [] for name in names}
        return {name: self.site.call(function, *args) for name in names}

    def call(self, minion: str, function: str, *args: Any, bound: float = 0, **kwargs: Any) -> Any:
        return self.site.call(function, *args, **kwargs)
