"""Reading what salt and salt-run print: JSON among noise, and every failed step in it."""

from __future__ import annotations

import json
import re
from typing import Any

MISSING = re.compile(
    r"^'?[\w.]+'? is not available\.?$|^Exception occurred in runner |^Minion did not "
)
"""Answers that are failures though they are mere strings: a function that is not there (salt-run
exits 0 for it), a runner that raised, a minion that did not answer."""


def parse_json(text: str) -> Any:
    """The last JSON value that starts a line in ``text``.

    Raises:
        ValueError: if there is none.
    """
    decoder = json.JSONDecoder()
    found: list[Any] = []
    position = 0
    start = re.compile(r'^[\[{"]|^(?:true|false|null|-?\d+)\s*$', re.M)
    while match := start.search(text, position):
        try:
            value, position = decoder.raw_decode(text, match.start())
        except ValueError:
            position = match.end()
        else:
            found.append(value)
    if not found:
        raise ValueError("no JSON in the answer")
    return found[-1]


def _one_line(value: object) -> str:
    text = str(value)
    before, trace, after = text.partition("Traceback (most recent call last):")
    if trace:
        text = f"{before}{after.strip().splitlines()[-1]}"
    return " ".join(text.split())[:600]


def _step_failures(where: str, steps: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for key, step in steps.items():
        if not isinstance(step, dict) or step.get("result") is not False:
            continue
        name = step.get("__id__") or key.replace("_|-", " ")
        changes = step.get("changes")
        changes = changes if isinstance(changes, dict) else {}
        # salt.state answers below "ret", by minion; salt.runner below "return".
        below = _below(changes.get("ret"), True)
        below += failures(changes.get("return"), f"{where}: {name}")
        lines += below or [f"{where}: {name}: {_one_line(step.get('comment', 'no comment'))}"]
    return lines


def failures(answer: Any, where: str) -> list[str]:
    """One line per failed step anywhere in an answer: machine, state, comment.

    Steps that only report a failed requisite are named last, as they are not the cause. A list is
    an answer like any other, except below a state run: there it holds the errors of rendering.
    """
    if isinstance(answer, str):
        return [f"{where}: {_one_line(answer)}"] if MISSING.search(answer) else []
    if not isinstance(answer, dict):
        return []
    if any("_|-" in str(key) for key in answer):
        lines = _step_failures(where, answer)
        late = [line for line in lines if "requisite" in line]
        return [line for line in lines if line not in late] + late
    if set(answer) >= {"data", "retcode"}:
        return _below(answer["data"], bool(answer["retcode"]))
    return _below(answer, False)


def _below(answers: Any, failed: bool) -> list[str]:
    if not isinstance(answers, dict):
        return []
    lines: list[str] = []
    for minion, answer in answers.items():
        if failed and isinstance(answer, list):
            lines += [f"{minion}: {_one_line(line)}" for line in answer]
        else:
            lines += failures(answer, str(minion))
    return lines


def verdict(
    answer: Any, code: int, where: str, expected: frozenset[str] = frozenset()
) -> list[str]:
    """Why a salt or salt-run call failed, or an empty list if it did not.

    Args:
        answer: its parsed JSON.
        code: its exit code.
        where: machine it ran on.
    """
    lines = failures(answer, where)
    retcode = answer.get("retcode", 0) if isinstance(answer, dict) else 0
    if not lines and isinstance(answer, dict) and code != 0:
        lines = _below(answer, True)
    if not lines and (code != 0 or retcode not in (0, None)):
        lines = [f"{where}: exit code {code}, retcode {retcode}: {_one_line(answer)}"]
    return lines
