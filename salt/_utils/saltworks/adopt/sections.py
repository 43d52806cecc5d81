"""The ordinary keys: kept as they are, section by section, or known to be gone."""

from __future__ import annotations

import difflib
import re
from itertools import pairwise
from typing import Any

from . import keys
from .model import dotted
from .reading import Path
from .values import Lost, carry
from .work import Work

_SIZE = re.compile(r"^\d+([KMGT](i?B)?)?$")
_DURATION = re.compile(r"^\d+[smhdwy]?$")


def ordinary(work: Work, key: str, value: Any) -> None:
    """Judge a top key for which no rule of its own exists.

    :param key: the key.
    :param value: its value in the old configuration.
    """
    if key in keys.FIXED:
        row = keys.FIXED[key]
        work.say((key,), row.verdict, row.reason)
    elif key in keys.WORKER_KEYS:
        _worker_key(work, key, value)
    elif key in keys.SECRET_PATHS:
        _secret_path(work, key, value)
    elif value is None and key not in keys.NULL_MEANS:
        if keys.known(key):
            work.say((key,), "dropped-no-effect", "it is empty, which is the same as no key")
        else:
            unknown(work, (key,))
    elif key in keys.BOTH or key in keys.NEW:
        if not _has_form(work, key, value):
            return
        keep(work, (key,), value, new=key in keys.NEW)
    else:
        unknown(work, (key,))


def keep(work: Work, path: Path, value: Any, *, new: bool = False) -> None:
    """Carry a value over, children with verdicts of their own where the table has them.

    :param new: only 1.163 reads the key.
    """
    section = keys.SECTIONS.get(_pattern(path))
    if value is None and str(path[0]).startswith("rc_"):
        work.say(path, "dropped-no-effect", "it is empty, and an empty limit would stop 1.163")
        return
    if section is not None and not isinstance(value, dict):
        work.say(
            path, "cannot-carry", f"it must hold keys, not {_kind(value)}",
            todo="write it as a section",
        )
        return
    if section is None:
        _keep_whole(work, path, value, new)
        return
    if not value:
        work.say(path, "dropped-no-effect", "the section is empty")
        return
    gone = keys.GONE_CHILDREN.get(_pattern(path), {})
    for child, item in value.items():
        child_path = (*path, str(child))
        if dotted(child_path) in work.verdicts:
            continue
        if child in gone:
            work.say(child_path, gone[child].verdict, gone[child].reason)
        elif child in section.both or child in section.new:
            keep(work, child_path, item, new=new or child in section.new)
        else:
            unknown(work, child_path, section.both | section.new)


def unknown(work: Work, path: Path, siblings: frozenset[str] | None = None) -> None:
    """The verdict on a key that no table has."""
    name = str(path[-1])
    if siblings is None:
        siblings = keys.BOTH | keys.NEW | frozenset(keys.FIXED) | frozenset(keys.WORKER_KEYS)
    close = difflib.get_close_matches(name, sorted(siblings), 1, 0.85)
    meant = f"did you mean {close[0]}?" if close else "remove it from the old file"
    if work.old[:2] == (1, 40):
        reason = f"unknown to {work.target}: 1.40 does not read it either, so it does nothing now"
        work.say(path, "dropped-no-effect", reason, todo=meant)
        work.warn(path, f"unknown to {work.target}, and to 1.40: it does nothing", meant)
    else:
        running = ".".join(map(str, work.old)) or "of unknown version"
        work.say(
            path,
            "cannot-carry",
            f"unknown to {work.target}; unclear whether the Synapse found ({running}) reads it",
            todo=meant,
        )


def put(work: Work, path: Path, value: Any) -> None:
    """Write a value into the settings to come."""
    node: Any = work.settings
    for step, following in pairwise(path):
        if isinstance(node, list):
            assert isinstance(step, int)
            while len(node) <= step:
                node.append({})
            node = node[step]
        else:
            node = node.setdefault(step, [] if isinstance(following, int) else {})
    node[path[-1]] = value


def _keep_whole(work: Work, path: Path, value: Any, new: bool) -> None:
    try:
        carried = carry(work, path, path, value)
    except Lost as lost:
        work.say(path, "cannot-carry", lost.what, todo=lost.todo)
        return
    put(work, path, carried)
    if isinstance(carried, dict) and set(carried) == {"secret"}:
        reason = "put away as a secret"
    elif carried != value:
        reason = "same meaning; secrets in it are put away, files named in it go along"
    else:
        reason = "same meaning"
    if new and work.old[:2] == (1, 40):
        reason = f"1.40 ignored it, {work.target} obeys it"
        work.warn(path, reason, "remove it from the old file if that is not wanted")
    work.say(path, "kept", reason)


def _worker_key(work: Work, key: str, value: Any) -> None:
    if value is None or value in keys.WORKER_KEYS[key]:
        work.say((key,), "dropped-no-effect", "it says that one process does it all, as ours does")
        return
    reason = "it belongs to a Synapse of several processes; what is adopted is one process"
    todo = "stop the workers and let the main process do their work, then adopt again"
    if key in keys.SHARED_OUT:
        work.say((key,), "replaced", f"{reason}; see the problem")
        work.refuse((key,), reason, todo)
    else:
        work.say((key,), "cannot-carry", reason, todo=todo)


def _secret_path(work: Work, key: str, value: Any) -> None:
    inline = keys.SECRET_PATHS[key]
    if value is None or work.old[:2] == (1, 40):
        work.say((key,), "dropped-no-effect", f"1.40 does not read it, only {inline}")
        return
    text = work.file(str(value))
    if text is None:
        work.say((key,), "replaced", f"becomes the secret {inline}", new_key=inline)
        work.refuse(
            (key,), f"the file {value} could not be read", "make it exist and readable for root"
        )
        return
    put(work, (inline,), work.secret(inline, text.strip()))
    work.say((key,), "replaced", f"its text becomes the secret {inline}", new_key=inline)


def _has_form(work: Work, key: str, value: Any) -> bool:
    wanted = ""
    if key in keys.LISTS and not isinstance(value, list):
        wanted = "a list"
    elif key in keys.MAPPINGS and not isinstance(value, dict):
        wanted = "a section"
    elif key in keys.SIZES and not (_is_int(value) or _SIZE.match(str(value))):
        wanted = "a size such as 50M"
    elif key in keys.DURATIONS and value is not None:
        if not (_is_int(value) or _DURATION.match(str(value))):
            wanted = "a duration such as 7d"
    elif key in keys.TEXTS and not isinstance(value, str):
        wanted = 'text: put it in quotes, "like this"'
    if wanted:
        work.say(
            (key,),
            "cannot-carry",
            f"{work.target} does not start with {_kind(value)} here",
            todo=f"write {wanted}",
        )
    return not wanted


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    names = {dict: "a section", list: "a list", str: f"the text {value!r}", bool: "a switch"}
    return names.get(type(value), f"the {type(value).__name__} {value!r}")


def _pattern(path: Path) -> str:
    return dotted(path) if not any(isinstance(step, int) for step in path) else re.sub(
        r"\[\d+\]", "[]", dotted(path)
    )
