"""State: nginx runs with what is on disk."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "nginx_config"


def __virtual__() -> str:
    return __virtualname__


def loaded(name: str, timeout: float = 10, notice: float = 2) -> dict[str, Any]:
    """Have nginx reload, if what is on disk is not what it was last told to load.

    Compares contents, not times: a run that died between writing and reloading is
    finished by the next one. The configuration is tested by nginx first.

    :param timeout: bound in seconds until no old worker accepts any more.
    :param notice: seconds for which clients are told before that connections end.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True, "comment": ""}
    try:
        on_disk = __salt__["nginx_config.digest"]()  # type: ignore[name-defined]
        running = __salt__["nginx_config.loaded"]()  # type: ignore[name-defined]
        if on_disk == running:
            if not __opts__["test"]:  # type: ignore[name-defined]
                # Of a run that died. Who still needs it gives it anew.
                __salt__["nginx_config.withdraw"]()  # type: ignore[name-defined]
            return {**ret, "comment": "nginx runs with what is on disk"}
        if __opts__["test"]:  # type: ignore[name-defined]
            return _would(ret)
        __salt__["nginx_config.notice"](notice)  # type: ignore[name-defined]
        try:
            done = __salt__["nginx_config.reload"](timeout=timeout)  # type: ignore[name-defined]
        finally:
            __salt__["nginx_config.withdraw"]()  # type: ignore[name-defined]
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    return {
        **ret,
        "changes": {"reloaded": done},
        "comment": f"nginx reloaded in {done['seconds']} s",
    }


def mod_watch(name: str, sfun: str = "loaded", **kwargs: Any) -> dict[str, Any]:
    """A watched file changes: in a test run that means a reload later."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return _would({"name": name, "changes": {}, "result": True, "comment": ""})
    return loaded(name, timeout=kwargs.get("timeout", 10), notice=kwargs.get("notice", 2))


def _would(ret: dict[str, Any]) -> dict[str, Any]:
    return {
        **ret,
        "result": None,
        "changes": {"reloaded": "would be"},
        "comment": "nginx would be reloaded",
    }
