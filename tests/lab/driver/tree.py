"""The work tree on the master: a copy of what git knows or would add."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .machine import Machine
from .process import host
from .settings import PROJECT

TARGET = "/srv/saltworks"
KEPT = ("pillar/cluster.sls", "pillar/secrets.sls")
"""Written on the master by the adoption; a copy of the tree leaves them alone."""

RESTART = ("salt/_utils/", "salt/_pillar/", "salt/_runners/", "salt/master.d/", "reactor/")
"""What a running master has loaded: a change below these needs its restart."""


@dataclass(frozen=True)
class Pushed:
    """What a push changed: paths in the tree, and whether the master needs a restart."""

    changed: list[str]

    @property
    def restart(self) -> bool:
        return any(path.startswith(RESTART) for path in self.changed)


def listed(project: Path = PROJECT) -> list[str]:
    """Files and links of the work tree: tracked, and untracked but not ignored."""
    command = ["git", "-c", "safe.directory=*", "-C", str(project), "ls-files"]
    out = host([*command, "-z", "--cached", "--others", "--exclude-standard"]).stdout
    present = {name for name in out.split("\0") if name and os.path.lexists(project / name)}
    return sorted(present)


def rules(names: list[str], kept: list[str]) -> str:
    """Filter rules for rsync: exactly these files, and ``kept`` neither sent nor deleted."""
    folders = {str(parent) for name in names for parent in Path(name).parents} - {"."}
    lines = [f"- /{name}" for name in kept] + [f"P /{name}" for name in KEPT]
    lines += [f"+ /{_literal(folder)}/" for folder in sorted(folders)]
    lines += [f"+ /{_literal(name)}" for name in names]
    return "\n".join([*lines, "- *"]) + "\n"


def _literal(name: str) -> str:
    return "".join(f"\\{char}" if char in "*?[" else char for char in name)


def push(machine: Machine, project: Path = PROJECT) -> Pushed:
    """Make ``/srv/saltworks`` of a created machine, running or not, equal to the work tree.

    ``master.d`` of the tree becomes ``/etc/salt/master.d``.
    """
    inside = machine.enter() if machine.running else ["chroot", str(machine.root)]
    host([*inside, "mkdir", "-p", TARGET])
    kept = [
        name for name in KEPT if host([*inside, "test", "-e", f"{TARGET}/{name}"], check=False).ok
    ]
    with tempfile.NamedTemporaryFile("w", suffix=".rules") as file:
        file.write(rules(listed(project), kept))
        file.flush()
        options = ["--checksum", "--delete", "--delete-excluded", f"--filter=merge {file.name}"]
        options += ["--chown=root:root", "--chmod=D755,Fgo-w", "--out-format=%n"]
        changed = machine.sync(project, TARGET, options)
    changed = [line.removeprefix("deleting ") for line in changed if not line.endswith("/")]
    # The master's own compiled copies go too, but are no change of the tree.
    changed = [line for line in changed if "/__pycache__/" not in line]
    source = f"{TARGET}/salt/master.d"
    command = f"test -d {source} || exit 0; rsync -rc --delete --include='*.conf' --exclude='*' "
    command += f"--out-format=salt/master.d/%n {source}/ /etc/salt/master.d/"
    lines = host([*inside, "/bin/sh", "-c", command]).stdout.splitlines()
    return Pushed(changed + [line for line in lines if not line.endswith("/")])
