"""States: a directory is offered, copied here, fenced."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "slapd"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def offered(name: str) -> dict[str, Any]:
    """The directory takes writes, and the folder ``name`` holds a dump of it as it is now."""
    if __opts__["test"]:
        return _ret(name, None, "the directory would be dumped, if it has changed")
    try:
        opened = __salt__["slapd.open"]()
        done = __salt__["slapd.dump"](name)
    except CommandExecutionError as error:
        return _ret(name, False, str(error))
    changes: dict[str, Any] = {"dumped": f"{done['entries']} entries"} if done["changed"] else {}
    if opened:
        changes["read_only"] = False
    return {**_ret(name, True, f"{done['entries']} entries"), "changes": changes}


def copied(
    name: str, source: str, host: str, key: str, machine: str, authority: str
) -> dict[str, Any]:
    """The directory here is equal to another machine's, and answers by TLS; see ``slapd.take``.

    :param name: the folder that its dump is fetched to.
    :param source: the folder there.
    :param host: address of the other machine.
    :param key: path of the private key here.
    :param machine: this machine's name, which its certificate must have.
    :param authority: file with the authority that must have signed it.
    """
    if __opts__["test"]:
        return _ret(name, None, f"the directory of {host} would be copied")
    try:
        done = __salt__["slapd.take"](name, source, host, key, whole=True)
        __salt__["slapd.answers"](machine, authority)
    except CommandExecutionError as error:
        return _ret(name, False, str(error))
    said = f"{done['entries']} entries, equal (sha256 {done['sha256'][:12]}, {done['seconds']} s)"
    return {**_ret(name, True, said), "changes": {"loaded": said} if done["loaded"] else {}}


def fenced(name: str) -> dict[str, Any]:
    """The directory takes no writes: its place is another machine now.

    :param name: for the report only.
    """
    try:
        done = any(row["read_only"] for row in __salt__["slapd.facts"]()["databases"])
        if done:
            return _ret(name, True, "read-only")
        if __opts__["test"]:
            return {**_ret(name, None, "would be made read-only"), "changes": {"read_only": True}}
        __salt__["slapd.fence"]()
    except CommandExecutionError as error:
        return _ret(name, False, str(error))
    return {**_ret(name, True, "made read-only"), "changes": {"read_only": True}}


def _ret(name: str, result: bool | None, comment: str) -> dict[str, Any]:
    return {"name": name, "result": result, "changes": {}, "comment": comment}
