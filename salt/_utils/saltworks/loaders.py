"""What every runner shares: a refusal is the operator's text and exit code 1, no traceback."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .errors import Refused
from .minions import MachineError


def refusing(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a runner function end with the text of a refusal instead of a traceback.

    Salt takes a raised exception's traceback for the answer; an answer in the form
    of ``state.orchestrate``'s, with ``retcode``, fails as well and can be read.
    """

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (Refused, MachineError) as error:
            return {"data": str(error), "retcode": 1}

    return guarded
