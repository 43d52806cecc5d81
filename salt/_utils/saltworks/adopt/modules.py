"""Modules: password providers, spam checkers, media providers and their like."""

from __future__ import annotations

from typing import Any

from ..modules import LDAP as LDAP_NEW
from .model import dotted
from .reading import Path
from .rules import rule
from .sections import keep, put
from .values import Lost, carry
from .work import Work, normal

LDAP_OLD = (
    "ldap_auth_provider.LdapAuthProvider",
    "synapse.util.ldap_auth_provider.LdapAuthProvider",
)
LDAP_RENAMED = "today's form of the LDAP module"

_FILE_SYSTEM = (
    "file_system",
    "synapse.rest.media.v1.storage_provider",
    "synapse.rest.media.v1.storage_provider.FileStorageProviderBackend",
    "synapse.media.storage_provider.FileStorageProviderBackend",
)


@rule("modules")
def _modules(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, list):
        work.say((key,), "cannot-carry", "it must be a list", todo="write a list of modules")
        return
    if not value:
        work.say((key,), "dropped-no-effect", "the list is empty")
    for index, item in enumerate(value):
        name = _name(work, (key, index), item)
        if name and importable(work, (key, index), name):
            _add(work, (key, index), name, item.get("config"))


@rule("password_providers")
def _providers(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, list):
        if value is None:
            work.say((key,), "dropped-no-effect", "it is empty")
        else:
            work.say((key,), "cannot-carry", "it must be a list", todo="write a list of providers")
        return
    if not value:
        work.say((key,), "dropped-no-effect", "the list is empty")
    for index, item in enumerate(value):
        path = (key, index)
        name = _name(work, path, item)
        if not name:
            continue
        if "config" not in item:
            work.say(path, "cannot-carry", "it has no config, and Synapse stops", todo="write one")
        elif name in LDAP_OLD:
            if importable(work, path, LDAP_NEW):
                _add(work, path, LDAP_NEW, item["config"], renamed=LDAP_RENAMED)
        elif importable(work, path, name):
            _keep_legacy(work, path, item)


@rule("ldap_config")
def _ldap_config(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, dict) or not value.get("enabled"):
        work.say((key,), "dropped-no-effect", "it is off")
    elif importable(work, (key,), LDAP_NEW):
        _add(work, (key,), LDAP_NEW, value, renamed=LDAP_RENAMED, whole=True)


@rule("spam_checker", "third_party_event_rules")
def _legacy_modules(work: Work, key: str, value: Any) -> None:
    if not value:
        work.say((key,), "dropped-no-effect", "it is empty")
        return
    rows = value if isinstance(value, list) else [value]
    for index, item in enumerate(rows):
        path: Path = (key, index) if isinstance(value, list) else (key,)
        name = _name(work, path, item)
        if name and importable(work, path, name):
            _keep_legacy(work, path, item)


@rule("presence")
def _presence(work: Work, key: str, value: Any) -> None:
    path = (key, "presence_router")
    if isinstance(value, dict) and value.get("presence_router"):
        name = _name(work, path, value["presence_router"])
        if name and importable(work, path, name):
            _keep_legacy(work, path, value["presence_router"])
    if value is None:
        work.say((key,), "dropped-no-effect", "it is empty")
    else:
        keep(work, (key,), value)


@rule("media_storage_providers")
def _media(work: Work, key: str, value: Any) -> None:
    if not value:
        work.say((key,), "dropped-no-effect", "the list is empty")
        return
    if not isinstance(value, list):
        work.say((key,), "cannot-carry", "it must be a list", todo="write a list of providers")
        return
    for index, item in enumerate(value):
        path = (key, index)
        name = _name(work, path, item)
        if not name:
            continue
        if name in _FILE_SYSTEM:
            work.say(
                path, "cannot-carry",
                "a second copy of the media on the old machine's disk is not moved",
                todo="keep that copy where it is as a backup",
            )
        elif importable(work, path, name):
            _keep_legacy(work, path, item)


def importable(work: Work, path: Path, name: str) -> bool:
    """Whether the new release has a class; a verdict is given when not.

    :param name: dotted class name, as the configuration has it.
    """
    top = name.split(".")[0]
    if top == "synapse" or work.can_import([top]):
        return True
    installed = work.found.get("installed_modules") or []
    package = next((row for row in installed if normal(row) == normal(top)), None)
    wanted = package or f"the package that has {top!r}"
    work.say(
        path, "cannot-carry",
        f"{name} is not among what the new release is built with, and Synapse stops without it",
        todo=f"add {wanted} to formulas/synapse/files/releases/ and lock it anew, if it works with "
        "the new Synapse",
    )
    return False


def _name(work: Work, path: Path, item: Any) -> str:
    if isinstance(item, dict) and isinstance(item.get("module"), str):
        return str(item["module"])
    work.say(
        path, "cannot-carry", "it must be a section that names a module",
        todo="write - module: package.Class",
    )
    return ""


def _add(
    work: Work, path: Path, name: str, config: Any, *, renamed: str = "", whole: bool = False
) -> None:
    """Put a module into the new list.

    :param whole: the configuration is the section at ``path`` itself.
    """
    source = path if whole else (*path, "config")
    if name == LDAP_NEW and isinstance(config, dict):
        config = _ldap(work, path, source, config)
        if config is None:
            return
    target: Path = ("modules", len(work.modules), "config")
    carried = _carry(work, path, source, target, config if config is not None else {})
    if carried is None:
        return
    work.modules.append({"module": name, "config": carried})
    place = f"modules[{len(work.modules) - 1}]"
    if renamed:
        work.say(path, "renamed", renamed, new_key=place)
    else:
        work.say(path, "kept", "same meaning; what is secret in it is put away", new_key=place)


def _carry(work: Work, path: Path, source: Path, target: Path, value: Any) -> Any:
    noted = len(work.loopback)
    try:
        return carry(work, source, target, value)
    except Lost as lost:
        del work.loopback[noted:]
        work.say(path, "cannot-carry", f"{dotted(lost.path)}: {lost.what}", todo=lost.todo)
        return None


def _ldap(work: Work, owner: Path, path: Path, config: dict[str, Any]) -> dict[str, Any] | None:
    """An LDAP module's configuration, its password file read."""
    if "validate_cert" in config and "tls_options" in config:
        work.say(
            owner, "cannot-carry", "validate_cert and tls_options together stop the LDAP module",
            todo="keep one of them",
        )
        return None
    name = config.get("bind_password_file")
    if not name or "bind_password" in config:
        return config
    text = work.file(str(name))
    if text is None:
        work.say(
            owner, "cannot-carry", f"bind_password_file: {name} could not be read",
            todo="make it exist and readable for root, then adopt again",
        )
        return None
    rest = {key: item for key, item in config.items() if key != "bind_password_file"}
    return {**rest, "bind_password": text.rstrip("\n")}


def _keep_legacy(work: Work, path: Path, item: dict[str, Any]) -> None:
    target = path
    if isinstance(path[-1], int):
        target = (path[0], len(work.settings.get(str(path[0]), [])))
    carried = _carry(work, path, path, target, item)
    if carried is None:
        return
    if isinstance(path[-1], int):
        work.settings.setdefault(str(path[0]), []).append(carried)
    else:
        put(work, path, carried)
    work.say(path, "kept", "the old interface is still loaded, though deprecated")
    work.warn(
        path, f"{item['module']} uses an interface that Synapse has deprecated",
        "look for a version of it that goes under modules:",
    )
