"""An adoption as text, for the operator's screen and editor."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from .model import KINDS, Adoption, Verdict

_TITLES = {
    "cannot-carry": "CANNOT BE CARRIED",
    "replaced": "REPLACED",
    "renamed": "RENAMED",
    "dropped-no-effect": "DROPPED, without effect",
    "kept": "KEPT",
}


def render(adoption: Adoption, width: int = 100) -> str:
    """The whole adoption as a plain text table, grouped by verdict; no secret is shown.

    :param adoption: what :func:`saltworks.adopt.judge` returned.
    :param width: columns of the screen.
    """
    parts: list[str] = []
    for kind in KINDS:
        rows = [row for row in adoption.verdicts if row.verdict == kind]
        if rows:
            parts += [f"{_TITLES[kind]} ({len(rows)})", *_table(rows, kind, width), ""]
    for title, problems in (("TO KNOW", adoption.warnings), ("PROBLEMS", adoption.problems)):
        if problems:
            parts.append(f"{title} ({len(problems)})")
            for row in problems:
                parts += _wrapped(f"- {row.place}: {row.what}", width, "  ")
                parts += _wrapped(f"-> {row.next_step}", width, "     ")
            parts.append("")
    if adoption.problems:
        parts.append("Not adopted. Nothing was changed; put the problems right and adopt again.")
    else:
        parts.append(f"Can be adopted: {len(adoption.verdicts)} verdicts, no problem.")
    return "\n".join(parts) + "\n"


def _table(rows: list[Verdict], kind: str, width: int) -> list[str]:
    if kind in ("kept", "dropped-no-effect"):
        return _compact(rows, width)
    wide = min(44, max(len(_label(row)) for row in rows))
    lines: list[str] = []
    for row in rows:
        text = row.reason
        if row.new_key:
            text += f" (now {row.new_key})"
        if row.what_to_do:
            when = "To do" if kind == "cannot-carry" else "Later"
            text += f". {when}: {row.what_to_do}"
        body = textwrap.wrap(text, max(30, width - wide - 4)) or [""]
        label = _label(row)
        if len(label) > wide:
            lines.append(f"  {label}")
            label = ""
        lines.append(f"  {label:<{wide}}  {body[0]}".rstrip())
        lines += [f"  {'':<{wide}}  {line}" for line in body[1:]]
    return lines


def _compact(rows: list[Verdict], width: int) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        by_reason.setdefault(row.reason, []).append(row.key)
    lines: list[str] = []
    for reason, keys in by_reason.items():
        lines += _wrapped(f"{', '.join(keys)}", width, "  ")
        lines += _wrapped(reason, width, "      ")
    return lines


def _label(row: Verdict) -> str:
    return f"{row.key} (not in the old file)" if row.stated else row.key


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=indent, subsequent_indent=f"{indent}  ",
        break_long_words=False, break_on_hyphens=False,
    )


_HEADER = """\
# The cluster map: what is declared. Written by adopt.homeserver from the server as it was
# found; yours to edit from here on. pillar/schema/cluster.schema.json explains every key.
# Secrets are not here: {secret: name} refers to pillar/secrets.sls, which is encrypted.
"""

_COMMENTS = {
    "server_name": "the part after the colon in user ids; it can never change",
    "public": "the name and ports that clients use; nginx answers there",
    "releases": "what M1 upgrades to",
    "machines": "minion id, role and address of each machine; more for M2 at the end of this file",
    "legacy": "the server as it was found",
    "synapse": "homeserver.yaml to come; listeners, paths and database are added by the plan",
    "build": "where the packages of a release come from; empty: pip's own settings",
    "backup": "where the legacy machine keeps the backups of M1",
}

_EXAMPLE = """\
# For M2, add the machines to come under `machines:` (ids of accepted minions):
#   machines:
#     synapse: {role: synapse, address: 192.0.2.12}
#     proxy: {role: proxy, address: 192.0.2.11}
"""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _mapping(dumper: yaml.SafeDumper, value: dict[str, Any]) -> yaml.Node:
    short = set(value) == {"secret"} or set(value) == {"role", "address"}
    return dumper.represent_mapping(
        "tag:yaml.org,2002:map", value.items(), flow_style=True if short else None
    )


_Dumper.add_representer(dict, _mapping)


def dump_map(cluster_map: Mapping[str, Any]) -> str:
    """The cluster map as a pillar file that a person can read and edit.

    :param cluster_map: of an :class:`~saltworks.adopt.model.Adoption`.
    :returns: YAML whose one top key is ``cluster``.
    """
    lines = [_HEADER, "cluster:"]
    for key, value in cluster_map.items():
        if key in _COMMENTS:
            lines.append(f"\n  # {_COMMENTS[key]}")
        text = yaml.dump(
            {key: value}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=96,
            default_flow_style=False,
        )
        lines.append(textwrap.indent(text.rstrip("\n"), "  ", lambda line: bool(line.strip())))
    return "\n".join(lines) + "\n\n" + _EXAMPLE
