"""The routing table in the docs is the worker table."""

from __future__ import annotations

import os

import yaml
from saltworks import worker_table

from tests.lab.driver import PROJECT

PATH = PROJECT / "docs" / "m4-workers.md"
BEGIN, END = "<!-- table -->\n", "<!-- /table -->"


def rows() -> str:
    """The table, as Markdown."""
    data = yaml.safe_load(worker_table.PATH.read_text("utf-8"))
    lines = ["| served by | by | else | requests |", "|---|---|---|---|"]
    for section in ("streams", "kinds"):
        for name, row in data[section].items():
            writer = f"{row['writer']} ({name})" if section == "streams" else name
            other = "nobody" if row.get("strict") else row.get("fallback", "main")
            shares = {row.get("balance"): row.get("endpoints", ()), **row.get("endpoints_by", {})}
            for balance, texts in shares.items():
                if texts:
                    cell = "<br>".join(f"`{text}`".replace("|", "\\|") for text in texts)
                    lines.append(f"| {writer} | {balance} | {other} | {cell} |")
    prefixes = ", ".join(
        f"`<{name}>` `{text}`".replace("|", "\\|") for name, text in data["prefixes"].items()
    )
    return "\n".join([*lines, "", f"Prefixes: {prefixes}.", ""])


def test_docs_have_the_table() -> None:
    text = PATH.read_text("utf-8")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    wanted = f"{head}{BEGIN}{rows()}{END}{tail}"
    if os.environ.get("SALTWORKS_WRITE_DOCS"):
        PATH.write_text(wanted, "utf-8")
        return
    assert text == wanted, "make it anew: SALTWORKS_WRITE_DOCS=1 and this test"
