"""What the render tests share: one Salt compiler, and the real nginx."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.render import trees


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
