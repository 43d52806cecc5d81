"""Load one of the project's Salt modules as Salt would: a file, and its dunders put in."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

SALT = Path(__file__).resolve().parents[3] / "salt"


def load(
    kind: str, name: str, salt: dict[str, Any] | None = None, test: bool = False
) -> ModuleType:
    """A fresh copy of ``salt/<kind>/<name>.py``.

    :param kind: ``_modules`` or ``_states``.
    :param salt: what ``__salt__`` answers.
    :param test: what ``__opts__["test"]`` says.
    """
    path = SALT / kind / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"under_test{kind}_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__salt__"] = salt if salt is not None else {}
    module.__dict__["__opts__"] = {"test": test}
    module.__dict__["__context__"] = {}
    spec.loader.exec_module(module)
    return module
