"""States: a Synapse release is built, is present, and its configuration is one it accepts."""

from __future__ import annotations

import grp
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from typing import Any

import salt.utils.yaml
from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_release"

HEADER = "# Managed by Salt (formula synapse); read without fault by Synapse {version}.\n"


def __virtual__() -> str:
    return __virtualname__


def built(
    name: str,
    requirements: str,
    directory: str,
    find_links: list[str] | None = None,
    no_index: bool = False,
) -> dict[str, Any]:
    """The archive of Synapse ``name`` (a version) is in ``directory``.

    :param requirements: path or ``salt://`` URL of the requirements, locked by hashes.
    :param find_links: folders or URLs with packages, as pip takes them.
    :param no_index: use nothing but ``find_links``.
    """
    ret = _ret(name)
    try:
        found = __salt__["synapse_release.describe"](name, requirements, directory)  # type: ignore[name-defined]
        if found["present"]:
            return {**ret, "comment": f"{found['path']} is there ({found['source_hash']})"}
        ret["changes"] = {"built": found["path"]}
        if __opts__["test"]:  # type: ignore[name-defined]
            return {**ret, "result": None, "comment": f"{found['path']} would be built"}
        done = __salt__["synapse_release.build"](  # type: ignore[name-defined]
            name, requirements, directory, find_links=find_links, no_index=no_index
        )
    except CommandExecutionError as error:
        return {**ret, "changes": {}, "result": False, "comment": str(error)}
    return {
        **ret,
        "changes": {"built": done["path"], "source_hash": done["source_hash"]},
        "comment": f"{done['path']} built",
    }


def present(name: str, source: str, source_hash: str) -> dict[str, Any]:
    """The release ``name`` (a version) is unpacked on this machine; current it is not yet.

    :param source: path or ``salt://`` URL of the archive.
    :param source_hash: ``sha256=<hex>`` of it.
    """
    ret = _ret(name)
    if not source or not source_hash.startswith("sha256="):
        if __opts__["test"]:  # type: ignore[name-defined]
            return {
                **ret,
                "result": None,
                "changes": {"release": {"old": None, "new": "to be built"}},
                "comment": f"Synapse {name} would be unpacked once it is built",
            }
        return {
            **ret,
            "result": False,
            "comment": f"no archive of Synapse {name} is known: pillar synapse:release wants "
            "source and source_hash (sha256=...); build it with synapse.built",
        }
    record = __salt__["synapse_release.installed"](name)  # type: ignore[name-defined]
    if record.get("source_hash") == source_hash:
        return {**ret, "comment": f"Synapse {name} is unpacked"}
    ret["changes"] = {"release": {"old": record.get("source_hash"), "new": source_hash}}
    if __opts__["test"]:  # type: ignore[name-defined]
        return {**ret, "result": None, "comment": f"Synapse {name} would be unpacked"}
    try:
        __salt__["synapse_release.unpack"](name, source, source_hash)  # type: ignore[name-defined]
    except CommandExecutionError as error:
        return {**ret, "changes": {}, "result": False, "comment": str(error)}
    return {**ret, "comment": f"Synapse {name} unpacked"}


def configured(
    name: str,
    version: str,
    config_pillar: str,
    user: str,
    group: str,
    defaults: Mapping[str, Any] | None = None,
    mode: int = 0o640,
    environment: Mapping[str, str] | None = None,
    base: str = "",
    read_by: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The homeserver.yaml ``name`` holds a pillar's mapping, and the release accepts it.

    The release reads the new file before it takes the old one's place. Neither the
    mapping nor a difference is shown: it holds secrets.

    :param version: of the release that shall read it.
    :param config_pillar: pillar key of the complete mapping.
    :param user: who Synapse runs as; checks the file.
    :param group: owner group of the file; its owner is root.
    :param defaults: keys the mapping need not name.
    :param environment: variables that the release will run with.
    :param base: a file that is read before it: a worker's is the homeserver.yaml beside it.
    :param read_by: on a machine of workers alone, each one's own file to the pillar key of its
        mapping: the release reads it as they do, not by itself, and need not read theirs again.
    """
    ret = _ret(name)
    config = __salt__["pillar.get"](config_pillar, None, unmask=True)  # type: ignore[name-defined]
    if not isinstance(config, Mapping) or not config:
        return {
            **ret,
            "result": False,
            "comment": f"pillar {config_pillar} is not a mapping with the keys of homeserver.yaml",
        }
    text = render(version, {**(defaults or {}), **config})
    wrong = _differences(name, text, group, mode)
    if not wrong:
        return {**ret, "comment": f"{name} is as declared"}
    ret["changes"] = dict.fromkeys(wrong, "not shown" if wrong == ["content"] else "corrected")
    if __opts__["test"]:  # type: ignore[name-defined]
        return {**ret, "result": None, "comment": f"{name} would be written"}

    def check(path: str, before: str) -> None:
        __salt__["synapse_release.check_config"](  # type: ignore[name-defined]
            version, path, user, environment=dict(environment or {}), base=before
        )

    temporary = _temporary(name, name)
    temporaries = [temporary]
    try:
        _write(temporary, text, group, mode)
        for path, other in _readers(version, read_by or {}, group, mode):
            temporaries.append(_temporary(name, path))
            _write(temporaries[-1], other, group, mode)
            check(temporaries[-1], temporary)
            _accepted().add(_digest(text, other))
        if not read_by and (not base or _digest(_text(base), text) not in _accepted()):
            check(temporary, base)
        os.replace(temporary, name)
    except (CommandExecutionError, KeyError, OSError) as error:
        comment = f"{name} stays as it was: {error}"
        return {**ret, "changes": {}, "result": False, "comment": comment}
    finally:
        for path in temporaries:
            if os.path.exists(path):
                os.remove(path)
    return {**ret, "comment": f"{name} written; Synapse {version} accepts it"}


def _readers(
    version: str, read_by: Mapping[str, str], group: str, mode: int
) -> list[tuple[str, str]]:
    """Files with which another is read: those that change, else the first; and their texts."""
    texts = {
        path: render(version, __salt__["pillar.get"](key, {}, unmask=True))  # type: ignore[name-defined]
        for path, key in sorted(read_by.items())
    }
    changed = [path for path, text in texts.items() if _differences(path, text, group, mode)]
    return [(path, texts[path]) for path in changed or [*texts][:1]]


def _accepted() -> set[str]:
    """Digests of texts that the release has read one after the other in this state run."""
    found: set[str] = __context__.setdefault("synapse_release.accepted", set())  # type: ignore[name-defined]
    return found


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _temporary(name: str, path: str) -> str:
    """Where a file is written to be read, in the folder of another."""
    return os.path.join(os.path.dirname(name), f".{os.path.basename(path)}.new")


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as handle:
        return handle.read()


def render(version: str, config: Mapping[str, Any]) -> str:
    """The text of a homeserver.yaml; equal mappings give equal texts."""
    # Through JSON: a pillar's mappings are not plain ones, and YAML aliases confuse readers.
    plain = json.loads(json.dumps(config))
    dumped: str = salt.utils.yaml.safe_dump(
        plain, default_flow_style=False, sort_keys=True, allow_unicode=True, width=100
    )
    return HEADER.format(version=version) + dumped


def _differences(path: str, text: str, group: str, mode: int) -> list[str]:
    try:
        content = _text(path)
        status = os.stat(path)
    except FileNotFoundError:
        return ["content"]
    wrong = []
    if content != text:
        wrong.append("content")
    if stat.S_IMODE(status.st_mode) != mode:
        wrong.append("mode")
    if status.st_uid != 0 or status.st_gid != _gid(group):
        wrong.append("owner")
    return wrong


def _write(path: str, text: str, group: str, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as handle:
        handle.write(text)
    os.chown(path, 0, grp.getgrnam(group).gr_gid)
    os.chmod(path, mode)


def _gid(group: str) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def _ret(name: str) -> dict[str, Any]:
    return {"name": name, "changes": {}, "result": True, "comment": ""}
