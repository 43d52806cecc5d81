"""What the render tests share: one Salt compiler, and the real nginx."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from saltworks import releases

from tests.lab.driver import PROJECT, Lab
from tests.render import trees

RELEASE_LOCK = releases.lock(PROJECT, releases.target(PROJECT))


@pytest.fixture(scope="session")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> trees.Renderer:
    """Salt's state compiler over the tree."""
    return trees.Renderer(tmp_path_factory.mktemp("render"))


@pytest.fixture(scope="session")
def nginx_binary() -> Path:
    """The real nginx; a machine without it cannot say whether a site is good."""
    found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not found:
        pytest.fail("nginx is not installed here; apt-get install --no-install-recommends nginx")
    return Path(found)


@pytest.fixture(scope="session")
def synapse_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A venv with the Synapse release of the lock, out of the lab's own wheels.

    Without psycopg2, which is built from source and which no configuration check loads.
    """
    wheels = Lab.load().mirror.wheels()
    venv = tmp_path_factory.mktemp("release") / "venv"
    lock = venv.with_name("requirements.txt")
    entries = re.split(r"^(?=\S)", RELEASE_LOCK.read_text(encoding="utf-8"), flags=re.M)
    lock.write_text("".join(row for row in entries if not row.startswith("psycopg2==")))
    subprocess.run(["/usr/bin/python3", "-m", "venv", str(venv)], check=True, timeout=60)
    subprocess.run(
        [str(venv / "bin/pip"), "install", "--quiet", "--no-index", "--find-links", str(wheels),
         "--no-deps", "--require-hashes", "-r", str(lock)],
        check=True, timeout=300,
    )
    return venv
