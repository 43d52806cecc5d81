"""The authorities are known to a client's connections before threads open them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FILES = Path(__file__).parents[2] / "formulas/media/files"

#: In a process of its own: its modules are imported by their bare names, as on the machine.
PROGRAM = """
import sys
from saltworks_media_store import PATIENCE, Store
from saltworks_media_tls import context

keys = ("access_key", "secret_key")
settings = {"endpoint": "https://store.example:4000", "ca": sys.argv[1]} | dict.fromkeys(keys, "x")
print(context(Store(settings, PATIENCE)._client).cert_store_stats()["x509_ca"])
"""


@pytest.mark.parametrize("ours", [True, False])
def test_the_authorities_are_there_before_the_first_connection(
    ours: bool, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    subject = ["-subj", "/CN=authority", "-keyout", str(tmp_path / "ca.key"), "-out", str(ca)]
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *subject],
        check=True, capture_output=True,
    )  # fmt: skip
    command = [sys.executable, "-c", PROGRAM, str(ca) if ours else ""]
    env = {"PYTHONPATH": str(FILES), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    count = int(done.stdout)
    assert count == 1 if ours else count > 1
