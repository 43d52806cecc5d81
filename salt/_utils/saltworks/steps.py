"""Steps of orchestrations that the master takes by its runners; see the states that use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from salt.exceptions import SaltException


def run(
    functions: Mapping[str, Callable[..., Any]], function: str, *args: Any, **kwargs: Any
) -> tuple[Any, bool]:
    """A runner's answer, and whether it failed.

    :param functions: the state's ``__salt__``.
    :param function: the runner's.
    """
    try:
        out = functions["saltutil.runner"](
            function, arg=list(args), kwarg=kwargs, full_return=True
        )
    except SaltException as error:
        return str(error), True
    except KeyError as error:
        if error.args != (function,):
            raise
        where = "take runner_dirs over from salt/master.d, then restart the master"
        return f"{function}: the master has no such runner -> {where}", True
    # A runner that raised has success False; an answer of another form is no runner's.
    if not isinstance(out, dict) or "return" not in out:
        return str(out), True
    answer = out["return"]
    if isinstance(answer, dict) and answer.get("retcode"):
        return str(answer["data"]), True
    return answer, not out.get("success", False)


def taken(
    opts: Mapping[str, Any],
    functions: Mapping[str, Callable[..., Any]],
    name: str,
    function: str,
    words: str,
) -> dict[str, Any]:
    """What a state returns for a step that a runner takes, with its name as the argument.

    :param opts: the state's ``__opts__``.
    :param functions: the state's ``__salt__``.
    :param words: what would be, for test mode.
    """
    if opts["test"]:
        return ret(name, None, f"{name}: {words}")
    return did(name, *run(functions, function, name))


def did(name: str, answer: Any, failed: bool) -> dict[str, Any]:
    """What a state returns for a runner's ``said`` and ``changes``.

    :param answer: the runner's, and
    :param failed: whether it failed, as :func:`run` gives them.
    """
    if failed or not isinstance(answer, dict):
        return ret(name, False, str(answer))
    return {**ret(name, True, str(answer["said"])), "changes": answer["changes"]}


def ret(name: str, result: bool | None, comment: str) -> dict[str, Any]:
    """What a state returns that changed nothing."""
    return {"name": name, "result": result, "changes": {}, "comment": comment}
