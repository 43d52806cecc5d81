"""The secrets file: names, and putting one in. There is no function that shows one."""

from __future__ import annotations

from pathlib import Path

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
