"""Steps of a milestone that the master itself takes.

Orchestrations use these in place of ``salt.runner`` because a precheck must run in
test mode too: it only reads, and its answer is part of the plan.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from saltworks import steps

__virtualname__ = "milestone"

#: What ``placement.put`` records.
PLACES = ("front", "managed", "retired", "upcoming", "given_up", "dcs")


def __virtual__() -> str:
    return __virtualname__


def prechecked(name: str, first: Sequence[str] = ()) -> dict[str, Any]:
    """Everything that speaks against a milestone, at once; runs in test mode as well.

    :param name: the milestone, such as ``m1``.
    :param first: parts of M3 that the same run moves before it.
    """
    return _reading(name, "precheck.milestone", **({"first": list(first)} if first else {}))


def verified(name: str) -> dict[str, Any]:
    """The milestone's verdict from the outside; in test mode only announced."""
    if __opts__["test"]:  # type: ignore[name-defined]
        words = f"{name.capitalize()} would be verified through the public name"
        return steps.ret(name, None, words)
    return _reading(name, "verify.milestone")


def keyed(
    name: str, secrets: Mapping[str, int] | None = None, key_pairs: Sequence[str] = ()
) -> dict[str, Any]:
    """A machine has a certificate of the project's authority, and its secrets are made.

    :param name: the machine.
    :param secrets: names of secrets to their length in letters.
    :param key_pairs: names of ssh key pairs.
    """
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, f"{name} would have a certificate and secrets, if it has none")
    calls: list[tuple[str, str, list[Any]]] = [("certificate", "pki.issue", [name])]
    for secret, length in (secrets or {}).items():
        calls.append((secret, "secret.make", [secret, length]))
    calls += [(pair, "secret.make_pair", [pair]) for pair in key_pairs]
    made = []
    for what, function, args in calls:
        answer, failed = _run(function, *args)
        if failed:
            return steps.ret(name, False, str(answer))
        made += [what] if answer else []
    changes = {"made": made} if made else {}
    return {**steps.ret(name, True, "certificate and secrets are there"), "changes": changes}


def begun(name: str) -> dict[str, Any]:
    """The milestone's row says that it runs, and by which process."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, f"{name.capitalize()} would begin")
    return _acting(name, "milestone.begin", {"milestone": {"old": "", "new": "running"}})


def placed(name: str, **places: Any) -> dict[str, Any]:
    """The record says where something is from now on; the plan follows it.

    :param name: for the report only.
    :param places: as ``placement.put`` takes them.
    """
    wanted = {key: value for key, value in places.items() if key in PLACES}
    now, failed = _run("placement.show")
    if failed:
        return steps.ret(name, False, str(now))
    changes = {
        key: {"old": now.get(key), "new": value}
        for key, value in wanted.items()
        if now.get(key) != value
    }
    if not changes:
        return steps.ret(name, True, "recorded already")
    if __opts__["test"]:  # type: ignore[name-defined]
        return {**steps.ret(name, None, "would be recorded"), "changes": changes}
    answer, failed = _run("placement.put", **wanted)
    words = str(answer) if failed else "recorded"
    return {**steps.ret(name, not failed, words), "changes": {} if failed else changes}


def knows_host_key(name: str) -> dict[str, Any]:
    """The ssh host key of the machine ``name`` is known, by Salt's own channel."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, f"the host key of {name} would be asked for")
    answer, failed = _run("placement.remember_host_key", name)
    return steps.ret(name, not failed, str(answer))


def handed_over(name: str) -> dict[str, Any]:
    """Synapse serves on its own machine; the front door was held while it moved."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, "Synapse would move to its own machine")
    answer, failed = _run("handover.synapse")
    if failed or not answer["changed"]:
        return steps.ret(name, not failed, str(answer) if failed else "Synapse is there")
    words = f"the door was held for {answer['window']} s"
    return {**steps.ret(name, True, words), "changes": {"moved": answer}}


def handed_back(name: str) -> dict[str, Any]:
    """Synapse serves where it was before its move."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, "Synapse would serve where it was")
    answer, failed = _run("handover.back")
    return steps.ret(name, not failed, str(answer))


def held(name: str) -> dict[str, Any]:
    """What a part needs before its copy and what stops Synapse is done, behind a shut door.

    :param name: the part, such as ``database``.
    """
    if __opts__["test"]:  # type: ignore[name-defined]
        words = f"the door would be held while {name} is made ready, if need be"
        return steps.ret(name, None, words)
    return _switch(name, "switch.hold", "is ready to be copied")


def switched(name: str) -> dict[str, Any]:
    """A part of M3 serves from its own machine; the front door was held while it moved.

    :param name: the part, such as ``database``.
    """
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, f"{name} would move to its own machine")
    return _switch(name, "switch.to")


def switched_back(name: str) -> dict[str, Any]:
    """A part of M3 serves from where it was found.

    :param name: the part, such as ``database``.
    """
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, f"{name} would move back to where it was found")
    return _switch(name, "switch.back")


def name_moved(name: str) -> dict[str, Any]:
    """The public name leads to the proxy, and nobody comes by the old machine any more."""
    if __opts__["test"]:  # type: ignore[name-defined]
        words = "it would be looked whether anybody still comes by the old machine"
        return steps.ret(name, None, words)
    answer, failed = _run("handover.name_moved")
    return steps.ret(name, not failed, str(answer))


def achieved(name: str) -> dict[str, Any]:
    """The milestone's record is written; only after it was verified."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, f"{name.capitalize()} would be recorded as achieved")
    return _acting(name, "milestone.achieve", {"milestone": {"old": "running", "new": "achieved"}})


def rolled_back(name: str) -> dict[str, Any]:
    """The record says that the milestone was taken back."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, f"{name.capitalize()} would be recorded as rolled back")
    changes = {"milestone": {"old": "running", "new": "rolled-back"}}
    return _acting(name, "milestone.roll_back", changes)


def returnable(name: str) -> dict[str, Any]:
    """The milestone has begun, is not achieved and nobody works on it.

    In test mode this is looked at as well; else nobody else begins from here on.
    """
    claim = not __opts__["test"]  # type: ignore[name-defined]
    answer, failed = _run("milestone.check_return", name, claim=claim)
    return steps.ret(name, not failed, str(answer))


def disarmed(name: str) -> dict[str, Any]:
    """The catch of a destructive step was opened less than a minute ago.

    :param name: the step, such as ``m1.finalize``.
    """
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, f"{name} would be refused unless armed")
    return _reading(name, "milestone.check_catch")


def finalized(name: str) -> dict[str, Any]:
    """The record says that what the milestone's way back needed is gone."""
    if __opts__["test"]:  # type: ignore[name-defined]
        return steps.ret(name, None, f"{name.capitalize()} would be recorded as finalized")
    return _acting(name, "milestone.finalize", {"milestone": {"old": "", "new": "finalized"}})


def _switch(name: str, function: str, done: str = "is there") -> dict[str, Any]:
    answer, failed = _run(function, name)
    if failed or not answer["changed"]:
        return steps.ret(name, not failed, str(answer) if failed else f"{name} {done}")
    words = f"the door was held for {answer['window']} s"
    return {**steps.ret(name, True, words), "changes": {"moved": answer}}


def _reading(name: str, function: str, **kwargs: Any) -> dict[str, Any]:
    answer, failed = _run(function, name, **kwargs)
    return steps.ret(name, not failed, str(answer))


def _acting(name: str, function: str, changes: dict[str, Any]) -> dict[str, Any]:
    answer, failed = _run(function, name)
    return {**steps.ret(name, not failed, str(answer)), "changes": {} if failed else changes}


def _run(function: str, *args: Any, **kwargs: Any) -> tuple[Any, bool]:
    return steps.run(__salt__, function, *args, **kwargs)  # type: ignore[name-defined]
