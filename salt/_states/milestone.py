"""Steps of a milestone that the master itself takes.

Orchestrations use these in place of ``salt.runner`` because a precheck must run in
test mode too: it only reads, and its answer is part of the plan.
"""

from __future__ import annotations

from typing import Any

from salt.exceptions import SaltException

__virtualname__ = "milestone"


def __virtual__() -> str:
    return __virtualname__


def prechecked(name: str) -> dict[str, Any]:
    """Everything that speaks against a milestone, at once; runs in test mode as well.

    :param name: the milestone, such as ``m1``.
    """
    return _reading(name, "precheck.milestone")


def verified(name: str) -> dict[str, Any]:
    """The milestone's verdict from the outside; in test mode only announced."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return _ret(name, None, f"{name.upper()} would be verified through the public name")
    return _reading(name, "verify.milestone")


def begun(name: str) -> dict[str, Any]:
    """The milestone's row says that it runs, and by which process."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return _ret(name, None, f"{name.upper()} would begin")
    return _acting(name, "milestone.begin", {"milestone": {"old": "", "new": "running"}})


def achieved(name: str) -> dict[str, Any]:
    """The milestone's record is written; only after it was verified."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return _ret(name, None, f"{name.upper()} would be recorded as achieved")
    return _acting(name, "milestone.achieve", {"milestone": {"old": "running", "new": "achieved"}})


def rolled_back(name: str) -> dict[str, Any]:
    """The record says that the milestone was taken back."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return _ret(name, None, f"{name.upper()} would be recorded as rolled back")
    changes = {"milestone": {"old": "running", "new": "rolled-back"}}
    return _acting(name, "milestone.roll_back", changes)


def disarmed(name: str) -> dict[str, Any]:
    """The catch of a destructive step was opened less than a minute ago.

    :param name: the step, such as ``m1.finalize``.
    """
    if __opts__["test"]:  # type: ignore[name-defined]
        return _ret(name, None, f"{name} would be refused unless armed")
    return _reading(name, "milestone.check_catch")


def _reading(name: str, function: str) -> dict[str, Any]:
    answer, failed = _run(function, name)
    return _ret(name, not failed, answer)


def _acting(name: str, function: str, changes: dict[str, Any]) -> dict[str, Any]:
    answer, failed = _run(function, name)
    return {**_ret(name, not failed, answer), "changes": {} if failed else changes}


def _run(function: str, name: str) -> tuple[str, bool]:
    try:
        out = __salt__["saltutil.runner"](function, arg=[name], full_return=True)  # type: ignore[name-defined]
    except SaltException as error:
        return str(error), True
    # A runner that raised has success False; one that is missing answers a string.
    failed = not isinstance(out, dict) or not out.get("success", False)
    answer = out.get("return") if isinstance(out, dict) else out
    if isinstance(answer, dict) and answer.get("retcode"):
        return str(answer["data"]), True
    return (answer if isinstance(answer, str) else str(answer)), failed


def _ret(name: str, result: bool | None, comment: str) -> dict[str, Any]:
    return {"name": name, "result": result, "changes": {}, "comment": comment}
