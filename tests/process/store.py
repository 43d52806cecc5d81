"""A real `rclone serve s3` over a folder, and `saltworks_media.py` with a media tree before it."""

from __future__ import annotations

import contextlib
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from tests.lab.driver import rclone
from tests.lab.driver.settings import PROJECT, Settings
from tests.process.front_door import free_ports
from tests.unit.modules.minion_modules import load

PROGRAM = PROJECT / "formulas/media/files/saltworks_media.py"
KEYS = ("AKSALTWORKSSALTWORKS", "secretsecretsecretsecretsecretsecretsecr")
Json = dict[str, Any]


@dataclass
class Site:
    """A media tree, a store, and what lies between them.

    :param name: of the machine that has the tree, where several have the store.
    """

    top: Path
    port: int
    name: str = ""
    counts: str = "local"
    sends: bool = True
    cache: Json = field(
        default_factory=lambda: {"keep_bytes": 0, "keep_seconds": 0, "idle_seconds": 0}
    )

    @property
    def media(self) -> Path:
        return self.top / self.name / "media_store"

    @property
    def state(self) -> Path:
        return self.top / self.name / "state"

    @property
    def bucket(self) -> Path:
        return self.top / "store" / "media"

    @property
    def ledger(self) -> Path:
        return self.top / "store" / "saltworks" / "hashes.jsonl"

    def put(self, path: str, data: bytes) -> Path:
        """A file of the media tree."""
        file = self.media / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        return file

    def upload(self, files: Mapping[str, bytes]) -> None:
        """Objects, by the protocol: a running rclone does not see all that comes to its disk."""
        client = self._client()
        for path, data in files.items():
            client.put_object(Bucket="media", Key=path, Body=data)

    def lose(self, path: str) -> None:
        """An object goes."""
        self._client().delete_object(Bucket="media", Key=path)

    def _client(self) -> Any:
        return boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self.port}", region_name="us-east-1",
            aws_access_key_id=KEYS[0], aws_secret_access_key=KEYS[1],
            config=Config(s3={"addressing_style": "path"}),
        )

    def run(self, *words: str) -> Json:
        """The program's answer, or its error under `error`."""
        store = {
            "endpoint": f"http://127.0.0.1:{self.port}",
            "ca": "",
            "bucket": "media",
            "ledger_bucket": "saltworks",
            "ledger_key": "hashes.jsonl",
            "access_key": KEYS[0],
            "secret_key": KEYS[1],
        }
        settings = {
            "media": str(self.media),
            "manifest": str(self.state / "manifest.jsonl"),
            "counts": self.counts,
            "sends": self.sends,
            "store": store,
            "cache": self.cache,
        }
        path = self.top / self.name / "settings.json"
        path.write_text(json.dumps(settings))
        command = [sys.executable, str(PROGRAM), str(path), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.stdout, done.stderr
        answer: Json = json.loads(done.stdout)
        assert done.returncode == ("error" in answer)
        return answer

    def beside(self, name: str) -> Site:
        """Another machine, with nothing but a cache of the same store."""
        made = replace(self, name=name, counts="store", sends=False)
        made.media.mkdir(parents=True)
        return made

    def hash(self) -> Json:
        """The storage machine's own hashing."""
        storage: Any = load("_modules", "storage")
        programs = self.top / "programs"
        if not programs.exists():
            (programs / "1").mkdir(parents=True)
            (programs / "1" / "rclone").symlink_to(rclone.program(Settings.load().cache))
            (programs / "current").symlink_to("1")
        storage.PROGRAMS = str(programs)
        keys = self.top / "keys.env"
        keys.write_text(f"RCLONE_AUTH_KEY='\"{KEYS[0]},{KEYS[1]}\"'\n")
        words = (str(self.bucket), f"http://127.0.0.1:{self.port}", "saltworks/hashes.jsonl")
        ledger = str(self.top / "hashes.jsonl")
        answer: Json = storage.hash_(*words, ledger=ledger, keys=str(keys), ca="")
        return answer

    def manifest(self) -> dict[str, Json]:
        """What the manifest says, by path; of two lines the last counts."""
        lines = (self.state / "manifest.jsonl").read_text().splitlines()
        return {row["path"]: row for row in map(json.loads, filter(None, lines))}


@contextlib.contextmanager
def serving(top: Path, port: int, tls: tuple[Path, Path] | None = None) -> Iterator[None]:
    """The store runs within the block.

    :param tls: files of its certificate and key; without them it serves in the clear.
    """
    log = top / "rclone.log"
    program = str(rclone.program(Settings.load().cache))
    command = [program, "serve", "s3", "--config=", "--addr", f"127.0.0.1:{port}"]
    if tls:
        command += ["--cert", str(tls[0]), "--key", str(tls[1]), "--min-tls-version", "tls1.2"]
    command += ["--vfs-cache-mode", "off", str(top / "store")]
    env = {"PATH": os.environ["PATH"], "RCLONE_AUTH_KEY": f'"{KEYS[0]},{KEYS[1]}"'}
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=env)
        try:
            _await(f"{'https' if tls else 'http'}://127.0.0.1:{port}/", log)
            yield
        finally:
            process.kill()
            process.wait()


@contextlib.contextmanager
def site(top: Path) -> Iterator[Site]:
    """A media folder with nothing in it, and a store that runs."""
    made_here = Site(top, free_ports(1)[0])
    for folder in (made_here.media, made_here.bucket, made_here.ledger.parent):
        folder.mkdir(parents=True)
    with serving(top, made_here.port):
        yield made_here


def _await(url: str, log: Path) -> None:
    end = time.monotonic() + 20
    # Whether its certificate is right is for who uses it to say.
    unverified = ssl.create_default_context()
    unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE
    while time.monotonic() < end:
        try:
            urllib.request.urlopen(url, timeout=2, context=unverified)
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"rclone did not answer: {log.read_text()[-2000:]}")
