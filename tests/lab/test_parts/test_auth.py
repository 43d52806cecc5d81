"""M3.auth on the real machines: planned, refused, moved, lost sight of, taken back, finalized."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from saltworks import pki

from tests.lab import milestones, people, witness
from tests.lab.driver import SaltRunError
from tests.lab.driver.settings import ADDRESSES
from tests.lab.driver.testinfra_backend import machine_host
from tests.lab.stage import Stage, assert_reads_as_before, changes, snapshots, steps

pytestmark = pytest.mark.lab

MACHINES = ("legacy", "proxy", "synapse", "directory")
SABOTAGE = "/etc/systemd/system/slapd.service.d/sabotage.conf"
ADMIN = f"-x -D cn=admin,{people.LDAP_BASE} -w {people.LDAP_ADMIN_PASSWORD}"
HANNA = people.BY_NAME["hanna"]
BRUNO = people.BY_NAME["bruno"]
#: Somebody whom the directory got after it was first copied.
UTE, UTE_OLD, UTE_NEW = "ute", "ute-margerite-1", "ute-enzian-2"
FRONT = ADDRESSES["proxy"]
#: How soon a login must be answered while the directory is away.
AWAY_SECONDS = 5.0


@dataclass(frozen=True)
class Answer:
    """What a login was answered."""

    status: int
    body: dict[str, Any]
    seconds: float


def login(stage: Stage, user: str, password: str) -> Answer:
    """A login through the public name; never for longer than 20 s."""
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user},
        "password": password,
        "device_id": "AUTHTEST",
    }
    url = f"{people.PUBLIC_URL}/_matrix/client/v3/login"
    # The front's address is known: what is measured is a login, not a look-up.
    words = ["curl", "-s", "-m", "20", "--resolve", f"{milestones.PUBLIC_NAME}:443:{FRONT}"]
    words += ["-w", "\n%{http_code} %{time_total}", "-d", json.dumps(body)]
    *text, last = stage.master.run([*words, url]).stdout.splitlines()
    status, seconds = last.split()
    return Answer(int(status), json.loads("".join(text) or "{}"), float(seconds))


def everything(stage: Stage) -> set[str]:
    """What may not change on any machine."""
    return snapshots(stage, MACHINES)


def data(stage: Stage, machine: str) -> str:
    """The directory on a machine, every attribute of every entry."""
    return stage.lab.machine(machine).run("slapcat -o ldif_wrap=no -n 1").stdout


def synapse_pid(stage: Stage) -> str:
    show = "systemctl show --property=MainPID --value synapse"
    return stage.lab.machine("synapse").run(show).stdout.strip()


def reaches(stage: Stage, machine: str, port: int) -> bool:
    knock = f"timeout 2 bash -c '</dev/tcp/198.18.0.15/{port}'"
    return stage.lab.machine(machine).run(knock, check=False).ok


def judged(stage: Stage, name: str) -> list[str]:
    """What the witness of a move has to complain of."""
    report = json.loads((stage.lab.settings.reports / f"{name}.json").read_text())
    stage.say(f"{name}: worst wait {report['worst_wait_seconds']} s, {report['acknowledged']} sent")
    return witness.verdict(report, milestones.MILESTONES["m3"].worst_wait)


def test_a_plan_touches_nothing(stage: Stage) -> None:
    found = everything(stage)
    plan = steps(stage.orchestrate("orch.m3.auth", test=True))
    assert everything(stage) ^ found == set()
    assert [name for name, row in plan.items() if row["result"] is False] == []
    assert plan["m3-auth-switched"]["result"] is None
    assert stage.state("m3.auth") == "not started"


def test_a_wrong_certificate_is_refused_while_people_chat_on(stage: Stage) -> None:
    machine = stage.lab.machine("directory")
    chain, key = stage.lab.issue(["directory"])
    machine.write("/root/wrong.crt", chain)
    machine.write("/root/wrong.key", key, 0o644)
    bind = "BindReadOnlyPaths=/root/wrong.{0}:/etc/ldap/saltworks/tls.{0}"
    machine.write(SABOTAGE, f"[Service]\n{bind.format('crt')}\n{bind.format('key')}\n")
    pid = synapse_pid(stage)
    with pytest.raises(SaltRunError) as refused:
        stage.orchestrate("orch.m3.auth")
    said = "\n".join(refused.value.failures)
    assert "the certificate of ldaps://directory:636 is not to be trusted" in said
    assert "highstate to directory" in said
    assert synapse_pid(stage) == pid
    assert login(stage, HANNA.localpart, HANNA.password).status == 200
    machine.run(f"rm -r {SABOTAGE.rpartition('/')[0]} && systemctl daemon-reload")
    machine.run("systemctl restart slapd")


def test_the_directory_moves_under_the_eyes_of_the_witness(
    stage: Stage, before: dict[str, Any]
) -> None:
    # The first run has copied already: this one must see what came since.
    entry = (
        f"dn: uid={UTE},ou=people,{people.LDAP_BASE}\nobjectClass: inetOrgPerson\n"
        f"uid: {UTE}\ncn: Ute\nsn: Ute\ngivenName: Ute\nmail: ute@lale.test\n"
        f"userPassword: {UTE_OLD}\n"
    )
    stage.legacy.run(f"ldapadd -H ldap://localhost:389 {ADMIN}", input=entry)
    out = stage.lab.settings.reports / "moved.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        answer = stage.orchestrate("orch.m3.auth")
    stage.say(str(steps(answer)["m3-auth-switched"]["changes"]))
    assert stage.state("m3.auth") == "achieved"
    assert_reads_as_before(stage, before)
    assert judged(stage, "moved") == []


def test_nothing_of_the_directory_is_lost_and_both_ends_are_equal(stage: Stage) -> None:
    assert data(stage, "legacy") == data(stage, "directory")
    assert f"uid={UTE}," in data(stage, "directory")
    rules = "slapcat -o ldif_wrap=no -n 0 | grep -E '^olc(Access|RootPW|Suffix|DbIndex)' | sort"
    assert stage.legacy.run(rules).stdout == stage.lab.machine("directory").run(rules).stdout
    assert login(stage, HANNA.localpart, HANNA.password).status == 200
    assert login(stage, UTE, UTE_OLD).status == 200
    assert login(stage, HANNA.localpart, "wrong").status == 403


def test_the_old_one_takes_no_writes_and_the_new_one_is_open_to_synapse_alone(
    stage: Stage,
) -> None:
    user = f"uid={UTE},ou=people,{people.LDAP_BASE}"
    change = f"ldappasswd -H ldap://localhost:389 {ADMIN} -s other-1 {user}"
    refused = stage.legacy.run(change, check=False)
    assert not refused.ok
    assert reaches(stage, "synapse", 636)
    assert reaches(stage, "directory", 636)
    assert not reaches(stage, "proxy", 636)
    assert not reaches(stage, "synapse", 389)
    host = machine_host(stage.lab.machine("directory"))
    sockets = {row for row in host.socket.get_listening_sockets() if row.startswith("tcp")}
    assert {row.rpartition(":")[2] for row in sockets} == {"22", "636"}


def test_a_second_run_changes_nothing(stage: Stage) -> None:
    found, pid = everything(stage), synapse_pid(stage)
    assert changes(stage.orchestrate("orch.m3.auth")) == []
    assert synapse_pid(stage) == pid
    assert everything(stage) ^ found == set()


def test_while_the_directory_is_away_people_chat_and_a_login_is_told_so(stage: Stage) -> None:
    machine = stage.lab.machine("directory")
    out = stage.lab.settings.reports / "away.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        machine.cut()
        for away in ("its link is cut", "it is dead"):
            told = login(stage, HANNA.localpart, HANNA.password)
            stage.say(f"{away}: {told}")
            assert (told.status, told.seconds < AWAY_SECONDS) == (503, True)
            assert "does not answer" in told.body["error"]
            # Whom Synapse itself knows comes in.
            here = login(stage, BRUNO.localpart, BRUNO.password)
            assert (here.status, here.seconds < AWAY_SECONDS) == (200, True)
            if away == "its link is cut":
                machine.mend()
                machine.kill()
    assert judged(stage, "away") == []
    stage.lab.boot(["directory"])
    port = "timeout 2 bash -c '</dev/tcp/198.18.0.15/636'"
    stage.lab.machine("synapse").wait_for(port, 60, "the directory to come back")
    assert login(stage, HANNA.localpart, HANNA.password).status == 200


def test_the_way_back_takes_along_what_was_written_since(stage: Stage) -> None:
    user = f"uid={UTE},ou=people,{people.LDAP_BASE}"
    machine = stage.lab.machine("directory")
    machine.run(f"ldappasswd -H ldapi:/// {ADMIN} -s {UTE_NEW} {user}")
    written = data(stage, "directory")
    assert written != data(stage, "legacy")
    out = stage.lab.settings.reports / "back.json"
    with milestones.chatting(stage.lab, stage.seed, out):
        stage.orchestrate("orch.m3.auth.rollback")
    assert stage.state("m3.auth") == "rolled-back"
    assert data(stage, "legacy") == written
    assert login(stage, UTE, UTE_NEW).status == 200
    assert login(stage, UTE, UTE_OLD).status == 403
    change = "ldappasswd -H {} {} -s {} {}"
    assert stage.legacy.run(change.format("ldap://localhost:389", ADMIN, UTE_OLD, user)).ok
    assert not machine.run(change.format("ldapi:///", ADMIN, "x", user), check=False).ok
    assert judged(stage, "back") == []


def test_it_moves_again(stage: Stage) -> None:
    stage.orchestrate("orch.m3.auth")
    assert data(stage, "legacy") == data(stage, "directory")
    assert login(stage, UTE, UTE_OLD).status == 200


def test_the_old_one_is_retired_when_it_is_finalized(stage: Stage) -> None:
    with pytest.raises(SaltRunError, match="not armed"):
        stage.orchestrate("orch.m3.auth.finalize")
    stage.lab.salt_run("milestone.arm", "m3.auth.finalize")
    stage.orchestrate("orch.m3.auth.finalize")
    old = machine_host(stage.legacy)
    assert not old.service("slapd").is_running
    assert stage.legacy.run("systemctl is-enabled slapd", check=False).stdout.strip() == "masked"
    # Only a person deletes it.
    assert UTE in data(stage, "legacy")
    for name in ("legacy", "directory"):
        assert not stage.lab.machine(name).run("ls /var/lib/saltworks/directory", check=False).ok
    knock = "timeout 2 bash -c '</dev/tcp/198.18.0.10/10389'"
    assert not stage.lab.machine("synapse").run(knock, check=False).ok
    with pytest.raises(SaltRunError, match="is finalized"):
        stage.orchestrate("orch.m3.auth.rollback")
    stage.lab.salt_run("verify.milestone", "m3.auth")
    assert changes(stage.orchestrate("orch.m3.auth")) == []


PROVIDER = '''
"""A site's own password provider: it asks an HTTPS service that has a private authority."""

import json
import ssl
import urllib.request

from synapse.module_api import run_in_background
from twisted.internet.threads import deferToThread


class Provider:
    def __init__(self, config, api):
        self.config, self.api = config, api
        api.register_password_auth_provider_callbacks(
            auth_checkers={("m.login.password", ("password",)): self.check}
        )

    @staticmethod
    def parse_config(config):
        ssl.create_default_context(cafile=config["authority"])
        return config

    async def check(self, username, login_type, login_dict):
        if not await deferToThread(self.ask, username, login_dict["password"]):
            return None
        user_id = self.api.get_qualified_user_id(username)
        if not await self.api.check_user_exists(user_id):
            await self.api.register_user(username)
        return user_id, None

    def ask(self, user, password):
        body = json.dumps({"user": user, "password": password}).encode()
        trusted = ssl.create_default_context(cafile=self.config["authority"])
        try:
            with urllib.request.urlopen(self.config["url"], body, 3, context=trusted) as answer:
                return json.load(answer)["good"]
        except OSError:
            return False
'''
SERVICE = '''
import http.server, json, ssl

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        good = asked == {"user": "otto", "password": "otto-flieder-1"}
        body = json.dumps({"good": good}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

server = http.server.ThreadingHTTPServer(("0.0.0.0", 8443), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/root/service.pem")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
'''


def wheel() -> bytes:
    """The provider as `pip wheel` would pack it."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as made:
        made.writestr("lale_provider/__init__.py", PROVIDER)
        info = "lale_provider-1.0.dist-info"
        made.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: lale-provider\n")
        made.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return packed.getvalue()


def test_a_site_s_own_provider_plugs_in_by_the_map_alone(stage: Stage) -> None:
    now = datetime.now(UTC)
    authority, key = pki.make_authority("lale office", now)
    proxy = stage.lab.machine("proxy")
    proxy.write("/root/service.pem", "".join(pki.issue(authority, key, ["proxy"], now)))
    proxy.write("/root/service.py", SERVICE)
    proxy.run("systemd-run --unit=office /usr/bin/python3 /root/service.py")
    packed = wheel()
    path = "/srv/saltworks-artifacts/plugins/lale_provider-1.0-py3-none-any.whl"
    stage.master.run(["mkdir", "-p", path.rpartition("/")[0]])
    stage.master.write(path, packed)
    row = {
        "module": "lale_provider.Provider",
        "config": {
            "url": "https://proxy:8443/",
            "authority": "/etc/synapse/certificates/office.pem",
        },
        "package": {
            "source": f"salt://plugins/{path.rpartition('/')[2]}",
            "source_hash": f"sha256={hashlib.sha256(packed).hexdigest()}",
        },
        "certificates": {"office": authority},
    }
    milestones.edit_map(stage.lab, lambda cluster: cluster["synapse"]["modules"].append(row))
    stage.lab.salt("synapse", "state.highstate", timeout=180)
    url = milestones.MILESTONES["m2"].admin_url
    up = f"curl -sf {url}/_matrix/client/versions"
    stage.lab.machine("synapse").wait_for(up, 60, "Synapse to answer")
    assert login(stage, "otto", "otto-flieder-1").status == 200
    assert login(stage, "otto", "wrong").status == 403
    assert login(stage, HANNA.localpart, HANNA.password).status == 200
