"""What plays AWS: moto's server for the API, and a stub that answers what a test tells it to."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qs, urlsplit

import boto3
from botocore.config import Config

from tests.process.front_door import free_ports, wait_for
from tests.unit.modules.minion_modules import load

Json = dict[str, Any]

REGION = "eu-central-1"
NAME = "lale-media"
SECRET = "secretsecretsecretsecretsecretsecretsecr"
KEYS = {"access_key": "AKIASALTWORKSSALTWOR", "secret_key": SECRET}
MODULES = ("s3_bucket_rules", "s3_bucket_errors", "s3_bucket")


@dataclass
class House:
    """The project's modules, as Salt loads them, and a store.

    :param keys: what the pillar has as credentials.
    """

    endpoint: str
    keys: Mapping[str, str]
    region: str = REGION
    ca: str = ""

    def __post_init__(self) -> None:
        self.salt: dict[str, Any] = {"pillar.get": lambda *_, **__: dict(self.keys)}
        for name in MODULES:
            module = load("_modules", name, self.salt)
            setattr(self, name, module)
            self.salt.update(
                (f"{name}.{key}", value) for key, value in vars(module).items()
                if callable(value) and not key.startswith("_")
            )
        self.module: ModuleType = vars(self)["s3_bucket"]

    def present(self, test: bool = False, **settings: Any) -> Json:
        """What the state answers."""
        state: Any = load("_states", "s3_bucket", self.salt, test)
        given = {
            "name": NAME, "region": self.region, "endpoint_url": self.endpoint, "ca": self.ca,
        }  # fmt: skip
        done: Json = state.present(**{**given, **settings})
        return done

    def client(self, service: str = "s3", keys: Mapping[str, str] | None = None) -> Any:
        """A plain boto3 client of the store: another pair of eyes, or hands."""
        keys = keys or self.keys
        return boto3.client(
            service, endpoint_url=self.endpoint, region_name=self.region,
            aws_access_key_id=keys["access_key"], aws_secret_access_key=keys["secret_key"],
            config=Config(retries={"total_max_attempts": 1}),
        )


@contextlib.contextmanager
def moto(folder: Path) -> Iterator[str]:
    """moto's server; yields its URL."""
    port = free_ports(1)[0]
    with (folder / "moto.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        env = {"PATH": os.environ["PATH"]}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=env)
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for("moto", lambda: _answers(f"{url}/moto-api/"), 60)
            yield url
        finally:
            process.kill()
            process.wait()


def tell_moto(url: str, what: str, data: str = "") -> None:
    """One of moto's own calls: ``reset``, ``reset-auth``."""
    plain = {"Content-Type": "text/plain"}
    request = urllib.request.Request(f"{url}/moto-api/{what}", data.encode(), plain)
    urllib.request.urlopen(request, timeout=20).close()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=20).close()
    except OSError:
        return False
    return True


def fault(code: str, message: str = "", more: str = "") -> str:
    """An error as S3 writes it."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code>'
        f"<Message>{message or code}</Message>{more}<RequestId>1</RequestId></Error>"
    )


XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
Answer = tuple[int, dict[str, str], str]


def located(region: str) -> Answer:
    """Where a bucket is."""
    return 200, {}, f"<LocationConstraint {XMLNS}>{region}</LocationConstraint>"


def listing(*names: str) -> Answer:
    """The account's own buckets."""
    rows = "".join(f"<Bucket><Name>{name}</Name></Bucket>" for name in names)
    rows = f"<Buckets>{rows}</Buckets>"
    return 200, {}, f"<ListAllMyBucketsResult {XMLNS}>{rows}</ListAllMyBucketsResult>"


#: A bucket of ours with nothing set.
BARE: dict[str, Answer] = {
    "GET": listing(NAME),
    "GET location": located(REGION),
    "GET versioning": (200, {}, f"<VersioningConfiguration {XMLNS}/>"),
    **{
        f"GET {query}": (404, {}, fault(code))
        for query, code in {
            "publicAccessBlock": "NoSuchPublicAccessBlockConfiguration",
            "ownershipControls": "OwnershipControlsNotFoundError",
            "encryption": "ServerSideEncryptionConfigurationNotFoundError",
            "policy": "NoSuchBucketPolicy",
            "lifecycle": "NoSuchLifecycleConfiguration",
            "tagging": "NoSuchTagSet",
        }.items()
    },
}


@dataclass
class Stub:
    """A server whose answers a test gives, by method and subresource: ``GET policy``.

    :param answers: of what is not there it says 200 and nothing.
    :param asked: what came, in its order.
    :param headers: of the last request.
    """

    url: str
    answers: dict[str, Answer | Callable[[], Answer]]
    asked: list[str]
    headers: dict[str, str]

    @property
    def wrote(self) -> list[str]:
        """What it was asked to change."""
        return [what for what in self.asked if not what.startswith(("GET", "HEAD"))]


@contextlib.contextmanager
def stub(tls: tuple[Path, Path] | None = None) -> Iterator[Stub]:
    """A stub that plays a bare bucket until it is told otherwise.

    :param tls: files of its certificate and key.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            query = next(iter(parse_qs(urlsplit(self.path).query, keep_blank_values=True)), "")
            # The list of buckets has a prefix, which is none of a bucket's subresources.
            query = "" if query == "prefix" else query
            what = f"{self.command} {query}".strip()
            made.asked.append(what)
            made.headers.clear()
            made.headers.update(self.headers.items())
            given = made.answers.get(f"{self.command} {urlsplit(self.path).path}")
            given = given or made.answers.get(what, (200, {}, ""))
            status, headers, body = given() if callable(given) else given
            sent = b"" if self.command == "HEAD" else body.encode()
            self.send_response_only(status)
            for key, value in {"Date": self.date_time_string(), **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    scheme, name = ("https", "localhost") if tls else ("http", "127.0.0.1")
    made = Stub(f"{scheme}://{name}:{server.server_address[1]}", dict(BARE), [], {})
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def measured() -> Iterator[list[float]]:
    """How long the block took, seconds, in a list of one."""
    took: list[float] = []
    begun = time.monotonic()
    yield took
    took.append(time.monotonic() - begun)
