"""State: Redis answers Synapse's account."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "redis_bus"


def __virtual__() -> str:
    return __virtualname__


def serving(
    name: str, address: str, port: int, user: str, password_pillar: str, authority: str
) -> dict[str, Any]:
    """Redis with the certificate of ``name`` lets an account in and answers.

    :param password_pillar: pillar key of the account's password.
    :param authority: file of the authority behind the certificate.
    """
    ret: dict[str, Any] = {"name": name, "changes": {}, "result": True}
    if __opts__["test"]:  # type: ignore[name-defined]
        return {**ret, "comment": "not asked in a test run"}
    password = __salt__["pillar.get"](password_pillar, "", unmask=True)  # type: ignore[name-defined]
    try:
        done = __salt__["redis_bus.ping"](name, address, port, user, password, authority)  # type: ignore[name-defined]
    except CommandExecutionError as error:
        return {**ret, "result": False, "comment": str(error)}
    return {**ret, "comment": f"answers after {done['seconds']} s"}
