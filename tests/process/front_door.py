"""A front door out of processes: real nginx, real systemd-socket-proxyd, a slow Synapse.

In place of systemd a thread holds the sockets and runs what the rendered units say.
"""

from __future__ import annotations

import http.client
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from tests.render import trees
from tests.render.webserver import Server
from tests.unit.modules.minion_modules import load

#: Answers every request; /slow takes a second, /sync is a long poll of three. Writes down what
#: it has done, and dies at once when it is told to.
BACKEND = """
import http.server, socketserver, sys, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        time.sleep(3 if "/sync" in self.path else 1 if "slow" in self.path else 0)
        with open(sys.argv[1], "a") as done:
            done.write(f"{self.command} {self.path}\\n")
        self.send_response(200)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    do_GET = do_POST = do_PUT = answer
    def log_message(self, *args): pass
class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 512
for port in sys.argv[2:]:
    threading.Thread(target=Server(("127.0.0.1", int(port)), Handler).serve_forever).start()
"""

SYSTEMCTL = """#!/bin/sh
cd {state}
case "$*" in
    "reload nginx.service") exec kill -HUP "$(cat nginx.pid)" ;;
    "show --property=MainPID --value nginx.service") exec cat nginx.pid ;;
    "show --property=ActiveState --value "*.socket) echo active ;;
    "show --property=ActiveState --value "*) cat "$4.state" 2>/dev/null || echo inactive ;;
    "stop "*) [ ! -e "$2.pid" ] || kill "$(cat "$2.pid")" 2>/dev/null || true ;;
    *) echo "unexpected: $*" >&2; exit 1 ;;
esac
"""


def wait_for(what: str, ready: Callable[[], bool], timeout: float = 15) -> None:
    """Until something holds, at most ``timeout`` seconds.

    :raises AssertionError: names what did not come.
    """
    end = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < end, f"{what} did not come within {timeout:g} s"
        select.select([], [], [], 0.02)


def accepts(port: int) -> bool:
    """Whether somebody listens on a local port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_ports(count: int) -> list[int]:
    """Local TCP ports that nobody listens on."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports


class Holder(threading.Thread):
    """One held socket: what systemd does with a ``.socket`` and its ``.service``."""

    def __init__(self, unit: str, socket_path: Path, service: str, state: Path) -> None:
        super().__init__(daemon=True)
        self.unit, self.state = unit, state
        self.before = re.findall(r"^ExecStartPre=/bin/sh -c '(.*)'$", service, re.M)[0]
        self.command = re.findall(r"^ExecStart=(.*)$", service, re.M)[0]
        self.environment = re.findall(r"^EnvironmentFile=-(.*)$", service, re.M)[0]
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(socket_path))
        socket_path.chmod(0o666)
        self.listener.listen(4096)
        self.ended = threading.Event()

    def run(self) -> None:
        """Start the service whenever something waits, as long as the test lasts."""
        while not self.ended.is_set():
            if select.select([self.listener], [], [], 0.1)[0]:
                self._serve()

    def _serve(self) -> None:
        active = f"{self.state}/{self.unit}.service.state"
        script = (
            f"echo activating > {active}; {self.before}; . {self.environment}; "
            f"echo active > {active}; export LISTEN_FDS=1 LISTEN_PID=$$; exec {self.command}"
        )
        descriptor = self.listener.fileno()
        process = subprocess.Popen(
            ["/bin/bash", "-c", f"exec 3<&{descriptor}; {script}"], pass_fds=[descriptor],
        )
        Path(f"{self.state}/{self.unit}.service.pid").write_text(str(process.pid), "utf-8")
        while process.poll() is None:
            if self.ended.wait(0.02):
                process.kill()
        Path(active).write_text("inactive", "utf-8")


class FrontDoor:
    """nginx with the formula's site, the door's module, and backends to come and go.

    :param folder: readable by nginx's workers, who are nobody.
    :param routing: which process a request goes to; by default there is one.
    """

    def __init__(
        self, folder: Path, binary: Path, renderer: trees.Renderer, certificate: tuple[str, str],
        module_path: Callable[[str], None], routing: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.binary = folder, binary
        ports = free_ports(7)
        self.public = ports[4]
        self.ports = {"found": ports[0:2], "synapse": ports[2:4]}
        self.served = folder / "served"
        self.served.touch()
        (path,) = [path for sls, path in trees.sls_files().items() if sls == "nginx"]
        row = {f"door at {self.public}": {"pillar": {"nginx": {
            "replaces": [],
            "site": {"ports": [self.public - 20000], "ipv6": False, "real_ip_from": []},
            "door": {
                "target": "found",
                "targets": {
                    name: {"address": "127.0.0.1", "port": pair[0], "poll_port": pair[1]}
                    for name, pair in self.ports.items()
                },
                "inner": {"port": ports[5], "poll_port": ports[6]},
            },
            "routing": dict(routing or {}),
        }}}}
        (case,) = trees.cases_for("nginx", path, {"default": row})
        worker = "user nobody nogroup;" if os.getuid() == 0 else ""
        self.site = Server(
            folder, binary, renderer, case, certificate, f"{worker} daemon off; worker_processes 2;"
        )
        self.holders = self._hold(renderer, case)
        self.door = self._modules(module_path)
        self.nginx: subprocess.Popen[bytes] | None = None
        self.backends: dict[str, subprocess.Popen[bytes]] = {}

    def begin(self) -> None:
        """Start nginx and the backend ``found``."""
        self.nginx = subprocess.Popen(
            [str(self.binary), "-p", str(self.folder), "-c", f"{self.folder}/etc/nginx/nginx.conf"]
        )
        (self.folder / "nginx.pid").write_text(str(self.nginx.pid), "utf-8")
        wait_for("nginx", lambda: accepts(self.public))
        self.start("found")

    def _hold(self, renderer: trees.Renderer, case: trees.Case) -> list[Holder]:
        holders = []
        for chunk in renderer.compile(case):
            name = str(chunk["name"])
            if chunk["fun"] == "managed" and name.startswith("/etc/saltworks/door/"):
                path = self.folder / name[1:]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("\n".join(chunk["contents"]) + "\n", "utf-8")
            if chunk["fun"] == "managed" and name.endswith(".service"):
                unit = Path(name).stem
                text = renderer.template(case, chunk["source"], chunk["context"])
                text = text.replace("/run/", f"{self.folder}/run/")
                text = text.replace("/etc/saltworks", f"{self.folder}/etc/saltworks")
                holders.append(Holder(unit, self.folder / f"run/{unit}.sock", text, self.folder))
        for holder in holders:
            holder.start()
        return holders

    def _modules(self, module_path: Callable[[str], None]) -> ModuleType:
        tools = self.folder / "bin"
        tools.mkdir()
        (tools / "systemctl").write_text(SYSTEMCTL.format(state=self.folder), "utf-8")
        (tools / "systemctl").chmod(0o755)
        (tools / "nginx").write_text(
            f'#!/bin/sh\nexec {self.binary} -p {self.folder} -c {self.folder}/etc/nginx/nginx.conf '
            '"$@"\n', "utf-8",
        )
        (tools / "nginx").chmod(0o755)
        module_path(str(tools))
        config = load("_modules", "nginx_config")
        door = load("_modules", "door", salt={
            f"nginx_config.{name}": getattr(config, name)
            for name in ("reload", "notice", "withdraw", "worker_uid")
        })
        for module in (config, door):
            for name, value in list(vars(module).items()):
                if name.isupper() and isinstance(value, str) and value.startswith(
                    ("/etc/", "/run/", "/var/")
                ):
                    setattr(module, name, f"{self.folder}{value}")
        # The one that the harness pointed for nginx to start with.
        Path(door.LINK).unlink()
        assert door.first_target("found")
        return door

    def start(self, target: str) -> None:
        """Start a backend and wait until it listens."""
        self.backends[target] = subprocess.Popen(
            [sys.executable, "-c", BACKEND, str(self.served), *map(str, self.ports[target])]
        )
        wait_for(f"backend {target}", lambda: all(map(accepts, self.ports[target])))

    def kill(self, target: str) -> None:
        """End a backend at once, with all that it is doing."""
        self.backends.pop(target).kill()

    def close(self, **kwargs: Any) -> Any:
        """Close the door; fenced where the test may touch the rules (root)."""
        return self.door.close(fence=os.getuid() == 0, **kwargs)

    def connection(self) -> http.client.HTTPSConnection:
        """A client's connection."""
        return http.client.HTTPSConnection(
            "127.0.0.1", self.public, timeout=30, context=ssl._create_unverified_context()
        )

    def request(self, method: str, path: str, body: bytes | None = None) -> int:
        """One request on a connection of its own: its status."""
        connection = self.connection()
        try:
            connection.request(method, path, body)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    def did(self, method: str, path: str) -> int:
        """How often backends have finished a request."""
        return self.served.read_text("utf-8").splitlines().count(f"{method} {path}")

    def end(self) -> None:
        """Stop every process and take the rules away."""
        for target in list(self.backends):
            self.kill(target)
        for holder in self.holders:
            holder.ended.set()
            holder.join(5)
        if self.nginx:
            self.nginx.send_signal(signal.SIGTERM)
            self.nginx.wait(10)
        self.door._lower_fence()
        shutil.rmtree(self.folder)


class Client(threading.Thread):
    """Sends one sort of request over and over and keeps what went wrong.

    :param keep: whether it uses a connection as long as it may.
    """

    def __init__(self, front: FrontDoor, name: str, method: str, path: str, keep: bool) -> None:
        super().__init__(daemon=True)
        self.front, self.label, self.method, self.path, self.keep = front, name, method, path, keep
        self.ended = threading.Event()
        self.sent: list[str] = []
        self.failed: list[str] = []
        self.worst = 0.0

    def run(self) -> None:
        """Until it is ended."""
        connection = self.front.connection()
        while not self.ended.is_set():
            path = f"{self.path}/{self.label}-{len(self.sent)}"
            if "/sync" in self.path:
                path = f"{self.path}?since={self.label}-{len(self.sent)}"
            begun = time.monotonic()
            try:
                connection.request(self.method, path, b"x" if self.method != "GET" else None)
                answer = connection.getresponse()
                answer.read()
                self.sent.append(path)
                if answer.status != 200:
                    self.failed.append(f"{self.method} {path}: {answer.status}")
                if not self.keep or answer.will_close:
                    connection.close()
            except (OSError, http.client.HTTPException) as error:
                self.sent.append(path)
                self.failed.append(f"{self.method} {path}: {error!r}")
                connection.close()
            self.worst = max(self.worst, time.monotonic() - begun)
            self.ended.wait(0.02)
        connection.close()
