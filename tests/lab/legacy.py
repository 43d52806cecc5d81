"""Builds the hand-made legacy server (M0): what a person did with an editor and a shell in 2021.

Nothing of Salt or of our formulas is used here. Every step checks that it worked, and raises
RuntimeError (or what the machine raises for a failed command) if it did not.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from tests.lab import people

FILES = Path(__file__).parent / "legacy_files"
HOME = "/home/matrix/synapse"
VERSION = "1.40.0"
TARBALL = "/srv/mirror/wheels-legacy/synapse-1.40.0-env.tar.gz"
PORT = 8008
CERTIFICATES = "/etc/ssl/lale"
ADMIN_URL = f"http://127.0.0.1:{PORT}"

Database = Literal["postgresql", "sqlite"]
Issue = Callable[[list[str]], tuple[str, str]]
Say = Callable[[str], None]

PACKAGES = (
    "slapd",
    "ldap-utils",
    "nginx",
    "curl",
    "libpq5",
    "libjpeg62-turbo",
    "libxml2",
    "libxslt1.1",
)
DATABASE_PACKAGES: dict[Database, tuple[str, ...]] = {
    "postgresql": ("postgresql-15",),
    "sqlite": ("sqlite3",),
}
APT = "DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Options::=--force-confold"

LOCALE = "UTF8|C|C"
QUERIES: dict[Database, str] = {
    "postgresql": f"PGPASSWORD={people.DATABASE_PASSWORD} psql -h 127.0.0.1 -U synapse_user "
    "-d synapse -Atc",
    "sqlite": f"sqlite3 {HOME}/homeserver.db",
}


class Ran(Protocol):
    """What a command said."""

    @property
    def stdout(self) -> str: ...


class Host(Protocol):
    """The part of a lab machine that is used here."""

    def run(
        self,
        command: str | Sequence[str],
        check: bool = True,
        timeout: float = 60,
        input: str | bytes | None = None,
        user: str | None = None,
    ) -> Ran: ...

    def write(
        self, path: str, data: str | bytes, mode: int = 0o644, owner: str | None = None
    ) -> None: ...

    def wait_for(self, command: str, seconds: float, what: str) -> Any: ...


def values(
    database: Database,
    home: str = HOME,
    port: int = PORT,
    ldap_uri: str = "ldap://localhost:389",
    database_port: int = 5432,
) -> dict[str, str]:
    """What stands for the marks (`@NAME@`) in the hand-made files."""
    return {
        "DATABASE": (FILES / f"database-{database}.yaml").read_text().rstrip(),
        "HOME": home,
        "PORT": str(port),
        "LDAP_URI": ldap_uri,
        "DATABASE_PORT": str(database_port),
        "DATABASE_PASSWORD": people.DATABASE_PASSWORD,
        "LDAP_ADMIN_PASSWORD": people.LDAP_ADMIN_PASSWORD,
        "REGISTRATION_SHARED_SECRET": people.REGISTRATION_SHARED_SECRET,
        "MACAROON_SECRET_KEY": people.MACAROON_SECRET_KEY,
        "FORM_SECRET": people.FORM_SECRET,
        "PEPPER": people.PEPPER,
    }


def filled(name: str, marks: dict[str, str]) -> str:
    """A hand-made file with its marks filled in."""
    text = (FILES / name).read_text()
    for mark, value in marks.items():
        text = text.replace(f"@{mark}@", value)
    return text


def build(
    machine: Host,
    database: Database = "postgresql",
    issue: Issue | None = None,
    say: Say = lambda text: None,
) -> None:
    """Makes a fresh, booted lab machine the legacy server, running, without data.

    issue: gives certificate chain and key (PEM) for names, by the lab's authority; a machine of
    the lab driver has its own. Takes about a minute.
    """
    if database not in get_args(Database):
        known = ", ".join(get_args(Database))
        raise ValueError(f"LEGACY_DATABASE={database!r}: no such kind, there are: {known}")
    issue = issue or machine.lab.issue  # type: ignore[attr-defined]
    marks = values(database)
    steps: tuple[tuple[str, Callable[[], None]], ...] = (
        ("packages", lambda: _packages(machine, database, marks)),
        ("directory", lambda: _directory(machine)),
        ("database", lambda: _database(machine, database)),
        ("synapse", lambda: _synapse(machine, marks)),
        ("nginx", lambda: _nginx(machine, issue)),
        # A new 1.40 has background updates of its own; until they are done thumbnails fail.
        ("background updates", lambda: settle(machine, database)),
    )
    for name, step in steps:
        say(f"legacy: {name}")
        step()


def _packages(machine: Host, database: Database, marks: dict[str, str]) -> None:
    machine.run(["debconf-set-selections"], input=filled("slapd.debconf", marks))
    machine.run("apt-get -q update", timeout=120)
    names = " ".join((*PACKAGES, *DATABASE_PACKAGES[database]))
    machine.run(f"{APT} install {names}", timeout=300)
    services = ["slapd", "nginx", *(["postgresql"] if database == "postgresql" else [])]
    for service in services:
        machine.wait_for(f"systemctl is-active {service}", 90, f"{service} to start")


def _directory(machine: Host) -> None:
    admin = f"-D cn=admin,{people.LDAP_BASE} -w {people.LDAP_ADMIN_PASSWORD}"
    machine.run(f"ldapadd -x -H ldap://localhost:389 {admin}", input=people.ldif())
    for person in people.PEOPLE:
        if person.kind == "ldap":
            user = f"uid={person.localpart},ou=people,{people.LDAP_BASE}"
            words = ["ldapwhoami", "-x", "-H", "ldap://localhost:389", "-D", user]
            machine.run([*words, "-w", person.password])


def _database(machine: Host, database: Database) -> None:
    if database == "sqlite":
        return
    role = f"CREATE ROLE synapse_user LOGIN PASSWORD '{people.DATABASE_PASSWORD}'"
    base = (
        "CREATE DATABASE synapse OWNER synapse_user ENCODING 'UTF8' "
        "LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    )
    for statement in (role, base):
        machine.run(["psql", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement], user="postgres")
    found = query(
        machine,
        database,
        "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database "
        "WHERE datname = 'synapse'",
    )
    if found != LOCALE:
        raise RuntimeError(f"database synapse has encoding and locale {found}, not {LOCALE}")


def query(machine: Host, database: Database, sql: str) -> str:
    """The answer of the legacy server's database to one statement."""
    return machine.run(f"{QUERIES[database]} {shlex.quote(sql)}").stdout.strip()


def _synapse(machine: Host, marks: dict[str, str]) -> None:
    machine.run("id -u matrix || useradd --create-home --shell /bin/bash matrix")
    machine.run(f"tar -C / -xzf {TARBALL} && chown -R matrix: {HOME}", timeout=120)
    modules = "import synapse.app.homeserver, ldap_auth_provider, psycopg2"
    machine.run([f"{HOME}/env/bin/python", "-W", "ignore", "-c", modules])
    for name in ("homeserver.yaml", "lale.test.log.config"):
        machine.write(f"{HOME}/{name}", filled(name, marks), 0o600, "matrix:matrix")
    machine.run(
        f"cd {HOME} && env/bin/python -m synapse.app.homeserver -c homeserver.yaml "
        "--generate-keys && test -s lale.test.signing.key",
        user="matrix",
    )
    unit = (FILES / "matrix-synapse.service").read_text()
    machine.write("/etc/systemd/system/matrix-synapse.service", unit)
    machine.run("systemctl daemon-reload && systemctl enable --now matrix-synapse.service")
    await_synapse(machine)
    answer = machine.run(f"curl -sf {ADMIN_URL}/_synapse/admin/v1/server_version").stdout
    if json.loads(answer)["server_version"] != VERSION:
        raise RuntimeError(f"Synapse at {ADMIN_URL} says it is {answer}, not {VERSION}")


def await_synapse(machine: Host, seconds: float = 60) -> None:
    """Waits until the legacy Synapse answers on its own port."""
    machine.wait_for(f"curl -sf {ADMIN_URL}/_matrix/client/versions", seconds, "Synapse to answer")


def _nginx(machine: Host, issue: Issue) -> None:
    machine.run(["mkdir", "-p", CERTIFICATES, "/var/www/lale"])
    for name, names in (
        ("chat.lale.test", ["chat.lale.test"]),
        ("www.lale.test", ["www.lale.test", "lale.test"]),
    ):
        chain, key = issue(names)
        machine.write(f"{CERTIFICATES}/{name}.crt", chain)
        machine.write(f"{CERTIFICATES}/{name}.key", key, 0o600)
    machine.write("/var/www/lale/index.html", (FILES / "index.html").read_text())
    for site in ("matrix", "www"):
        machine.write(f"/etc/nginx/sites-available/{site}", (FILES / f"nginx-{site}").read_text())
        machine.run(["ln", "-sf", f"../sites-available/{site}", f"/etc/nginx/sites-enabled/{site}"])
    machine.run("rm -f /etc/nginx/sites-enabled/default && nginx -t && systemctl reload nginx")
    for url in (
        "https://chat.lale.test/_matrix/client/versions",
        "https://chat.lale.test/.well-known/matrix/client",
        "https://www.lale.test/",
    ):
        host = url.split("/")[2]
        # A reload is done when new workers serve, which nginx does not wait for.
        machine.wait_for(f"curl -sf --resolve {host}:443:127.0.0.1 {url}", 60, f"{url} to answer")


def settle(machine: Host, database: Database, seconds: float = 180) -> None:
    """Waits until 1.40 has done its background updates, without which no upgrade may begin."""
    test = f'[ "$({QUERIES[database]} "SELECT count(*) FROM background_updates")" = 0 ]'
    machine.wait_for(test, seconds, "the background updates of Synapse 1.40 to end")


def m0_inputs(database: Database, base: str, messages: int) -> dict[str, Any]:
    """Everything that makes a seeded legacy machine what it is.

    base: name of the base image (it is named by the hash of what made it).
    """
    folder = Path(__file__).parent
    sources = [
        folder / "legacy.py",
        folder / "people.py",
        *sorted(folder.glob("seed*.py")),
        *sorted(FILES.iterdir()),
    ]
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sources}
    return {"files": hashes, "database": database, "base": base, "messages": messages}


def m0_key(database: Database = "postgresql", base: str = "", messages: int = 2000) -> str:
    """A name for the seeded machine: the hash of all that makes it."""
    text = json.dumps(m0_inputs(database, base, messages), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
