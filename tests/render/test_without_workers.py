"""Without workers the files of M1 to M3 are what they were before there were any, byte by byte."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.render import trees

#: Case of a formula to file to SHA-256, of the last commit without workers. Who changes such a
#: file on purpose writes the new hash, which the failure says.
GOLDEN = Path(__file__).with_name("without_workers.json")
HASHES = json.loads(GOLDEN.read_text("utf-8"))


@pytest.mark.parametrize("name", HASHES)
def test_files_are_as_they_were(renderer: trees.Renderer, name: str) -> None:
    (case,) = [case for case in trees.all_cases() if str(case) == name]
    found = {
        str(chunk["name"]): hashlib.sha256(
            renderer.template(
                case, chunk["source"], {**chunk.get("defaults", {}), **chunk.get("context", {})}
            ).encode()
        ).hexdigest()
        for chunk in renderer.compile(case) if chunk.get("template") == "jinja"
    }
    assert found == HASHES[name]
