"""The secrets file: names, and putting one in. There is no function that shows one."""

from __future__ import annotations

import secrets
import string
from pathlib import Path

from saltworks import ssh_keys
from saltworks.errors import Problem, Refused
from saltworks.loaders import refusing
from saltworks.tree import Tree

__func_alias__ = {"list_": "list"}


@refusing
def list_() -> list[str]:
    """Names of the secrets at hand.

    CLI Example:

    .. code-block:: bash

        salt-run secret.list
    """
    return Tree.of(__opts__).vault.names()  # type: ignore[name-defined]


@refusing
def put(name: str, path: str) -> str:
    """Encrypt a file's content as a secret; the file can be removed afterwards.

    :param name: the secret's name.
    :param path: a file on the master; its final newline is not part of the secret.
    :raises saltworks.errors.Refused: when the file is missing or empty.

    CLI Example:

    .. code-block:: bash

        salt-run secret.put verify_password /root/verify_password
    """
    source = Path(path)
    text = source.read_text(encoding="utf-8").rstrip("\n") if source.is_file() else ""
    if not text:
        raise Refused("secret", [Problem(path, "is missing or empty", f"write {name} into it")])
    Tree.of(__opts__).vault.put({name: text})  # type: ignore[name-defined]
    return f"{name} is encrypted in pillar/secrets.sls"


@refusing
def make(name: str, length: int = 48) -> bool:
    """Make a secret at random, unless there is one of that name.

    :param name: the secret's name.
    :param length: letters and digits, at least 16.
    :returns: False when it was there.

    CLI Example:

    .. code-block:: bash

        salt-run secret.make storage_secret_key 40
    """
    vault = Tree.of(__opts__).vault  # type: ignore[name-defined]
    if name in vault.names():
        return False
    letters = string.ascii_letters + string.digits
    vault.put({name: "".join(secrets.choice(letters) for _ in range(max(16, int(length))))})
    return True


@refusing
def make_pair(name: str) -> bool:
    """Make an ssh key pair, unless there is one of that name.

    :param name: of the pair: the secrets are ``<name>_private`` and ``<name>_public``.
    :returns: False when it was there.

    CLI Example:

    .. code-block:: bash

        salt-run secret.make_pair transfer_directory
    """
    vault = Tree.of(__opts__).vault  # type: ignore[name-defined]
    if {f"{name}_private", f"{name}_public"} <= set(vault.names()):
        return False
    vault.put(ssh_keys.pair(name))
    return True
