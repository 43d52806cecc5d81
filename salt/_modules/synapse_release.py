"""Immutable releases of Synapse: build one, unpack one, ask one whether it likes a config.

A release is a complete, compiled virtual environment at
``/opt/synapse/releases/<version>``, built once from a requirements file locked by
hashes, carried as one archive and never changed afterwards.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sysconfig
import tempfile
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "synapse_release"

RELEASES = "/opt/synapse/releases"
PYTHON = "/usr/bin/python3"
RECORD = ".release"

#: Runs in a mount namespace of its own: a virtual environment does not relocate, so
#: it is built under its final path, over which nobody else sees the new folder.
BUILD = """
releases=$1 staging=$2 version=$3 python=$4 requirements=$5
shift 5
umask 022
mount --bind "$staging" "$releases"
venv=$releases/$version
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir \
    --require-hashes --no-deps --no-compile "$@" -r "$requirements"
"$venv/bin/python" -m compileall -q -j 2 -o 0 --invalidation-mode unchecked-hash "$venv/lib"
"""

#: Asks a release as Synapse itself does when a setting needs an extra of its package.
ASK_EXTRA = """
import json, sys
from synapse.util.check_dependencies import DependencyException, check_requirements
try:
    check_requirements(sys.argv[1])
except DependencyException as error:
    print(json.dumps(list(error.args[0])))
else:
    print("[]")
"""


def __virtual__() -> str:
    return __virtualname__


def archive_name(version: str, requirements: bytes, abi: str) -> str:
    """File name of a release: equal inputs have equal names.

    :param version: Synapse's version.
    :param requirements: content of the locked requirements file.
    :param abi: of the Python it is for, such as ``cp311-x86_64``.
    """
    return f"synapse-{version}-{abi}-{hashlib.sha256(requirements).hexdigest()[:12]}.tar.gz"


def describe(version: str, requirements: str, directory: str) -> dict[str, Any]:
    """The archive that :func:`build` makes, and whether it is there.

    :param requirements: path or ``salt://`` URL of the locked requirements file.
    :returns: ``name``, ``path``, ``present``, ``source_hash`` (``sha256=...``, empty
        if it is not there).
    :raises CommandExecutionError: the requirements do not exist or lock another version.
    """
    path, text = _requirements(requirements)
    if not re.search(rf"(?m)^matrix-synapse(\[[^\]]*\])?=={re.escape(str(version))}(\s|$)", text):
        raise CommandExecutionError(
            f"{requirements} does not lock matrix-synapse=={version}; "
            "lock it again or correct the version"
        )
    name = archive_name(str(version), text.encode(), _abi())
    archive = os.path.join(directory, name)
    digest = _recorded_digest(archive)
    return {
        "name": name,
        "path": archive,
        "present": bool(digest),
        "source_hash": f"sha256={digest}" if digest else "",
        "requirements": path,
    }


def build(
    version: str,
    requirements: str,
    directory: str,
    find_links: list[str] | None = None,
    no_index: bool = False,
    timeout: float = 1800,
) -> dict[str, Any]:
    """Build a release into ``directory``; nothing is done when it is there already.

    A release that is installed or running on this machine is not touched.

    :param requirements: path or ``salt://`` URL of the requirements, locked by hashes.
    :param find_links: folders or URLs with packages, as pip takes them.
    :param no_index: use nothing but ``find_links``.
    :param timeout: bound in seconds for the whole build.
    :returns: as :func:`describe`.
    :raises CommandExecutionError: pip or the compiler failed; says with what.
    """
    found = describe(version, requirements, directory)
    if found["present"]:
        return found
    os.makedirs(directory, mode=0o755, exist_ok=True)
    os.makedirs(RELEASES, mode=0o755, exist_ok=True)
    options = ["--no-index"] if no_index else []
    for place in find_links or []:
        options += ["--find-links", place]
    with tempfile.TemporaryDirectory(dir=directory, prefix=".build-") as staging:
        os.chmod(staging, 0o755)
        _run(
            ["unshare", "--mount", "--propagation", "private", "--", "/bin/sh", "-euc", BUILD,
             "build", RELEASES, staging, str(version), PYTHON, found["requirements"], *options],
            timeout, f"building Synapse {version}",
        )
        archive = os.path.join(staging, found["name"])
        _run(
            ["tar", "--create", "--gzip", "--file", archive, "--sort=name", "--owner=0",
             "--group=0", "--numeric-owner", "--directory", staging, str(version)],
            timeout, f"packing Synapse {version}",
        )
        digest = _digest(archive)
        os.chmod(archive, 0o644)
        os.replace(archive, found["path"])
        # The hash comes last: an archive without one is one whose making was cut.
        with open(f"{found['path']}.sha256", "w", encoding="utf-8") as handle:
            handle.write(f"{digest}  {found['name']}\n")
    return {**found, "present": True, "source_hash": f"sha256={digest}"}


def installed(version: str) -> dict[str, Any]:
    """What is recorded of an unpacked release: ``version`` and ``source_hash``; else empty."""
    try:
        with open(os.path.join(RELEASES, str(version), RECORD), encoding="utf-8") as handle:
            record: dict[str, Any] = json.load(handle)
    except FileNotFoundError:
        return {}
    return record


def unpack(version: str, source: str, source_hash: str) -> dict[str, Any]:
    """Unpack a release beside the others; it appears whole or not at all.

    :param source: path or ``salt://`` URL of the archive.
    :param source_hash: ``sha256=<hex>``; anything else than it is refused.
    :returns: the record, as :func:`installed`.
    :raises CommandExecutionError: no such archive, wrong hash, or not a release.
    """
    version = str(version)
    archive = source if source.startswith("/") else __salt__["cp.cache_file"](source)  # type: ignore[name-defined]
    if not archive or not os.path.isfile(archive):
        raise CommandExecutionError(
            f"the release {source} is not there; build it: state.apply synapse.built on the builder"
        )
    digest = f"sha256={_digest(archive)}"
    if digest != source_hash:
        raise CommandExecutionError(
            f"{source} has {digest}, expected {source_hash}; nothing was unpacked"
        )
    os.makedirs(RELEASES, mode=0o755, exist_ok=True)
    final = os.path.join(RELEASES, version)
    record = {"version": version, "source_hash": source_hash, "archive": os.path.basename(source)}
    with tempfile.TemporaryDirectory(dir=RELEASES, prefix=f".{version}-") as staging:
        _run(
            ["tar", "--extract", "--gzip", "--file", archive, "--no-same-owner",
             "--directory", staging],
            900, f"unpacking {source}",
        )
        new = os.path.join(staging, version)
        if not os.path.exists(os.path.join(new, "bin", "python")):
            raise CommandExecutionError(f"{source} holds no release {version}; build it again")
        with open(os.path.join(new, RECORD), "w", encoding="utf-8") as handle:
            json.dump(record, handle)
        if os.path.lexists(final):
            os.rename(final, os.path.join(staging, "old"))
        os.rename(new, final)
    if archive != source:
        os.remove(archive)
    return record


def lacking(version: str, extra: str) -> dict[str, list[str]]:
    """What an unpacked release does not have of an extra of Synapse's package.

    :param extra: such as ``redis``.
    :returns: ``packages``: requirements that are missing or too old; none when it has all.
    :raises CommandExecutionError: the release is not here, or knows no such extra.

    CLI Example:

    .. code-block:: bash

        salt synapse synapse_release.lacking 1.163.2 redis
    """
    python = _python(version)
    said = _run([python, "-I", "-c", ASK_EXTRA, extra], 60, f"asking Synapse {version} for {extra}")
    return {"packages": json.loads(said)}


def check_config(
    version: str,
    path: str,
    user: str,
    timeout: float = 60,
    environment: Mapping[str, str] | None = None,
    base: str = "",
) -> None:
    """Have a release read a homeserver.yaml as it would at its start.

    :param user: who it would run as; files that this user cannot read are found, too.
    :param environment: variables that it would run with.
    :param base: a file that it would read before.
    :raises CommandExecutionError: with what Synapse says against it.
    """
    python = _python(version)
    files = [word for file in (base, path) if file for word in ("-c", file)]
    _run(
        ["runuser", "-u", user, "--", python, "-m", "synapse.config", *files],
        timeout, f"Synapse {version} refuses its configuration", cwd=os.path.dirname(path),
        environment=environment,
    )


def _python(version: str) -> str:
    python = os.path.join(RELEASES, str(version), "bin", "python")
    if not os.path.exists(python):
        raise CommandExecutionError(
            f"Synapse {version} is not installed here, so it cannot be asked; "
            "apply synapse.installed first"
        )
    return python


def _requirements(requirements: str) -> tuple[str, str]:
    local = requirements
    if not requirements.startswith("/"):
        local = __salt__["cp.cache_file"](requirements)  # type: ignore[name-defined]
    if not local or not os.path.isfile(local):
        raise CommandExecutionError(f"the requirements file {requirements} does not exist")
    with open(local, encoding="utf-8") as handle:
        return local, handle.read()


def _abi() -> str:
    done = subprocess.run(
        [PYTHON, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])"],
        capture_output=True, text=True, timeout=20, check=False,
    )
    return f"{done.stdout.strip()}-{sysconfig.get_platform().rpartition('-')[2]}"


def _digest(path: str) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _recorded_digest(archive: str) -> str:
    try:
        with open(f"{archive}.sha256", encoding="utf-8") as handle:
            recorded = handle.read().split()[0]
    except (FileNotFoundError, IndexError):
        return ""
    return recorded if os.path.isfile(archive) else ""


def _run(
    command: list[str],
    timeout: float,
    what: str,
    cwd: str | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    plain = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LC_ALL": "C.UTF-8",
    }
    # pip's own settings of the builder (mirror, CA) are its site's business.
    kept = {k: v for k, v in os.environ.items() if k.startswith(("PIP_", "SSL_CERT_")) or
            k.lower() in ("http_proxy", "https_proxy", "no_proxy")}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, check=False,
            cwd=cwd or "/", env={**plain, **kept, **(environment or {})},
        )
    except subprocess.TimeoutExpired:
        raise CommandExecutionError(f"{what}: not done after {timeout:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-1500:]
        raise CommandExecutionError(f"{what}: {said or f'exit {done.returncode}'}")
    return done.stdout
