"""A PostgreSQL of a test's own, and this project's modules wired as Salt's loader would."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.lab.driver import oldpostgres
from tests.lab.driver.settings import Settings

MODULES = Path(__file__).parents[2] / "salt" / "_modules"
STATES = Path(__file__).parents[2] / "salt" / "_states"

#: Of Synapse's role: with all that a careless way of passing it on would break at.
PASSWORD = "p:w\\d 'x=#"

FILES = (
    "saltworks_pg",
    "saltworks_pgadmit",
    "saltworks_pgbackrest",
    "saltworks_pgcluster",
    "saltworks_pgcontent",
    "saltworks_pgcopy",
    "saltworks_pglogical",
    "saltworks_pgpitr",
    "saltworks_pgrecovery",
    "saltworks_pgproof",
    "saltworks_pgpublish",
    "saltworks_pgreceiver",
    "saltworks_pgrestore",
    "saltworks_pgscratch",
    "saltworks_pgserver",
    "saltworks_pgstandby",
    "saltworks_pgsubscribe",
    "saltworks_sqlite",
    "synapse_db",
    "synapse_fingerprint",
    "synapse_upgrade",
)


def load(path: Path) -> ModuleType:
    """One loader module, imported by its file."""
    spec = importlib.util.spec_from_file_location(f"under_test_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded(names: tuple[str, ...] = FILES) -> dict[str, Any]:
    """``__salt__`` with the public functions of the modules, each wired to the others."""
    salt: dict[str, Any] = {}
    context: dict[str, Any] = {}
    for name in names:
        module = load(MODULES / f"{name}.py")
        module.__salt__ = salt  # type: ignore[attr-defined]
        module.__context__ = context  # type: ignore[attr-defined]
        for key, value in vars(module).items():
            if callable(value) and not isinstance(value, type) and key[0] != "_":
                salt[f"{module.__virtualname__}.{key}"] = value
    return salt


def bindir() -> str:
    """Folder of the newest PostgreSQL's programs on this machine."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "PostgreSQL's server programs are missing; apt install postgresql"
    return str(found[-1].parent)


def old_bindir(top: Path, major: int) -> str:
    """The same of an older version; clients are the newer ones, which speak to both."""
    folder = top / "bin"
    folder.mkdir()
    for program in (oldpostgres.programs(Settings.load().cache, major) / "bin").iterdir():
        (folder / program.name).symlink_to(program)
    (folder / "psql").symlink_to(f"{bindir()}/psql")
    return str(folder)


@contextlib.contextmanager
def cluster(
    port: int = 54777,
    where: str | None = None,
    config: str = "",
    made: bool = True,
    old: int = 0,
) -> Iterator[dict[str, Any]]:
    """A running cluster in a folder of its own: ``bindir socket port data os_user top``.

    ``where`` is the folder it is made in; without it memory, where there is some, as tests
    are about order and not about disks. With ``config``, further lines for postgresql.conf, its
    configuration is outside the data folder as on Debian: ``config``, beside ``records``. It is
    neither filled nor started if it is not to be ``made``. ``old``: of that major version.
    """
    os_user = "postgres" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name
    memory = os.access("/dev/shm", os.W_OK) and shutil.disk_usage("/dev/shm").free > 2 << 30
    where = where or ("/dev/shm" if memory else None)
    top = tempfile.mkdtemp(prefix="saltworks-test-pg-", dir=where)
    os.chmod(top, 0o755)
    data, socket, etc = f"{top}/data", f"{top}/run", f"{top}/etc"
    account = pwd.getpwnam(os_user)
    for path in (data, socket, etc):
        os.mkdir(path, 0o700 if path == data else 0o755)
        if os.geteuid() == 0:
            os.chown(path, account.pw_uid, account.pw_gid)
    at = {
        "bindir": old_bindir(Path(top), old) if old else bindir(),
        "socket": socket,
        "port": port,
        "data": data,
        "os_user": os_user,
        "top": top,
    }
    if made:
        initdb = ["-A", "peer", "--locale=C", "-E", "UTF8", "-N"]
        as_user(at, f"{at['bindir']}/initdb", "-D", data, *initdb)
    if not config:
        etc = data
    else:
        at |= {"config": etc, "records": f"{top}/records"}
        as_user(at, "sh", "-c", f"mv {data}/*.conf {etc}/ || touch {etc}/pg_ident.conf")
        config += f"\nhba_file = '{etc}/pg_hba.conf'\nident_file = '{etc}/pg_ident.conf'\n"
    configuration = Path(f"{etc}/postgresql.conf")
    configuration.write_text(
        (configuration.read_text() if made else "")
        + f"listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{socket}'\n"
        f"shared_buffers = 64MB\n{config}"
    )
    Path(f"{etc}/pg_hba.conf").write_text(
        "local all all peer\nlocal replication all peer\nhost all all 127.0.0.1/32 scram-sha-256\n"
    )
    start = ["-o", f"-c config_file={etc}/postgresql.conf", "-l", f"{top}/run/log", "-w", "start"]
    try:
        if made:
            as_user(at, f"{at['bindir']}/pg_ctl", "-D", data, *start)
        yield at
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            as_user(at, f"{at['bindir']}/pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(top, ignore_errors=True)


def as_user(at: dict[str, Any], *argv: str, stdin: str | None = None) -> str:
    """Run a program as the cluster's account and give its output."""
    account = pwd.getpwnam(at["os_user"])
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:
        identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    done = subprocess.run(
        argv, input=stdin, capture_output=True, text=True, cwd="/", timeout=120, **identity
    )
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, argv, done.stdout, done.stderr)
    return str(done.stdout)


def psql(at: dict[str, Any], script: str, database: str = "postgres") -> str:
    """Run a script as the superuser; the answer without headings."""
    return as_user(
        at,
        f"{at['bindir']}/psql",
        *("-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1"),
        *("-h", at["socket"], "-p", str(at["port"]), "-d", database),
        stdin=script,
    ).strip()
