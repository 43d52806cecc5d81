"""Python packages beside Synapse's release, for the modules that a site brings along."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import zipfile

from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_plugin"


def __virtual__() -> str:
    return __virtualname__


def unpack(directory: str, source: str, source_hash: str) -> None:
    """Unpack a wheel, or copy a single ``.py`` file; the folder appears whole or not at all.

    :param directory: the folder, of this content and no other for ever.
    :param source: path or ``salt://`` URL.
    :param source_hash: ``sha256=<hex>``; anything else than it is refused.
    :raises CommandExecutionError: no such file, a wrong hash, or neither wheel nor ``.py``.

    CLI Example:

    .. code-block:: bash

        salt synapse synapse_plugin.unpack /opt/synapse/plugins/mine-0123456789ab \
            salt://plugins/mine-1.0-py3-none-any.whl sha256=...
    """
    found = source if source.startswith("/") else __salt__["cp.cache_file"](source)  # type: ignore[name-defined]
    if not found or not os.path.isfile(found):
        raise CommandExecutionError(
            f"the package {source} is not there; put it where salt:// finds it on the master, such "
            "as salt://plugins/<file> for /srv/saltworks-artifacts/plugins/<file>"
        )
    with open(found, "rb") as handle:
        digest = f"sha256={hashlib.file_digest(handle, 'sha256').hexdigest()}"
    if digest != source_hash:
        raise CommandExecutionError(
            f"{source} has {digest}, expected {source_hash}; nothing was unpacked: correct the "
            "hash in the cluster map, if this is the file you mean"
        )
    parent = os.path.dirname(directory)
    os.makedirs(parent, mode=0o755, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent, prefix=".unpack-") as staging:
        new = os.path.join(staging, "new")
        os.mkdir(new)
        _put(found, source, new)
        for folder, _, names in os.walk(new):
            os.chmod(folder, 0o755)
            for name in names:
                os.chmod(os.path.join(folder, name), 0o644)
        os.rename(new, directory)


def _put(found: str, source: str, new: str) -> None:
    if source.endswith(".py"):
        shutil.copyfile(found, os.path.join(new, os.path.basename(source)))
        return
    try:
        with zipfile.ZipFile(found) as wheel:
            wheel.extractall(new)
    except zipfile.BadZipFile:
        raise CommandExecutionError(
            f"{source} is neither a wheel nor a single .py file; build one: pip wheel --no-deps ."
        ) from None
