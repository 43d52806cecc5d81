"""States: how the front door shall stand."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "door"


def __virtual__() -> str:
    return __virtualname__


def opened(name: str, timeout: float = 10) -> dict[str, Any]:
    """The door is open to the target ``name``.

    :param timeout: bound in seconds for the target to accept and for old workers to go.
    """
    now = __salt__["door.status"]()  # type: ignore[name-defined]
    if now["state"] == "open" and now["target"] == name:
        return _same(name, f"open to {name}")
    return _change(name, now, f"open to {name}", "door.open", target=name, timeout=timeout)


def announced(name: str, seconds: float) -> dict[str, Any]:
    """Clients were told, for so long, to come back on a new connection for each request.

    :param seconds: longer than a long poll, so that every connection has heard it.
    """
    now = __salt__["door.status"]()  # type: ignore[name-defined]
    if now["state"] == "closed":
        return _same(name, "closed already")
    ret = {"name": name, "changes": {"door": {"old": "open", "new": f"announced {seconds:g} s"}}}
    if __opts__["test"]:  # type: ignore[name-defined]
        return {**ret, "result": None, "comment": f"clients would be told for {seconds:g} s"}
    try:
        told = __salt__["door.announce"](seconds)  # type: ignore[name-defined]
    except CommandExecutionError as error:
        return {**ret, "changes": {}, "result": False, "comment": str(error)}
    return {**ret, "result": True, "comment": f"clients have known for {told:g} s"}


def closed(name: str, timeout: float = 10) -> dict[str, Any]:
    """The door is closed: new requests are held.

    :param timeout: bound in seconds for old workers to stop accepting.
    """
    now = __salt__["door.status"]()  # type: ignore[name-defined]
    if now["state"] == "closed":
        return _same(name, "closed")
    return _change(name, now, "closed", "door.close", timeout=timeout)


def drained(name: str, ports: list[int], timeout: float = 10) -> dict[str, Any]:
    """No request is in flight to these ports of this machine.

    :param ports: local TCP ports, without those of long polls.
    :param timeout: bound in seconds.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}}
    if __opts__["test"]:  # type: ignore[name-defined]
        return {**ret, "result": None, "comment": "requests in flight would be waited for"}
    try:
        done = __salt__["door.drain"](ports, timeout=timeout)  # type: ignore[name-defined]
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    return {**ret, "result": True, "comment": f"quiet after {done['seconds']} s"}


def kept_from(name: str) -> dict[str, Any]:
    """The door has not been opened to the target ``name``: nobody has written there yet."""
    now = __salt__["door.status"]()  # type: ignore[name-defined]
    if now["state"] != "open" or now["target"] != name:
        return _same(name, f"not open to {name}")
    return {
        "name": name,
        "changes": {},
        "result": False,
        "comment": f"the door is open to {name}: going back now would lose what people have "
        "written there since; mend what is wrong and go on with the milestone",
    }


def first_target(name: str) -> dict[str, Any]:
    """A door that was never aimed points to the target ``name``; any other stays as it is."""
    now = __salt__["door.status"]()  # type: ignore[name-defined]
    if now["state"] != "unset":
        return _same(name, "aimed already")
    return _change(name, now, f"aimed at {name}", "door.first_target", target=name)


def _same(name: str, comment: str) -> dict[str, Any]:
    return {"name": name, "changes": {}, "result": True, "comment": f"the door is {comment}"}


def _change(
    name: str, now: dict[str, Any], wanted: str, function: str, **kwargs: Any
) -> dict[str, Any]:
    old = f"open to {now['target']}" if now["state"] == "open" else now["state"]
    ret = {"name": name, "changes": {"door": {"old": old, "new": wanted}}}
    if __opts__["test"]:  # type: ignore[name-defined]
        return {**ret, "result": None, "comment": f"the door would be {wanted}"}
    try:
        done = __salt__[function](**kwargs)  # type: ignore[name-defined]
    except CommandExecutionError as error:
        return {**ret, "changes": {}, "result": False, "comment": str(error)}
    seconds = done["seconds"] if isinstance(done, dict) else 0
    return {**ret, "result": True, "comment": f"the door is {wanted} ({seconds} s)"}
