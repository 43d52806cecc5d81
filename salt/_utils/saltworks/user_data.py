"""The cloud-init user-data of an invited machine."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from . import join_machine
from .invites import Invite
from .lock import stamp

#: Where the program and what it is told lie on the machine: in memory, for as long as it runs.
PROGRAM, TOLD = "/run/saltworks-join.py", "/run/saltworks-join.json"

#: What starts the minion once it has its key.
RESTART = ("systemctl", "restart", "salt-minion")


class _Text(str):
    """A string dumped as a literal block."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    _Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|")
)


def told(
    invite: Invite, secret: str, master: str, master_finger: str, root: str, restart: list[str]
) -> str:
    """What the program on the machine is told, as it reads it."""
    return json.dumps(
        {
            "pattern": invite.pattern,
            "secret": secret,
            "master": master,
            "master_finger": master_finger,
            "root": root,
            "restart": restart,
        }
    )


def render(invite: Invite, secret: str, master: str, master_finger: str) -> str:
    """The whole text.

    :param secret: the invite's.
    :param master: name or address by which the machine reaches the master.
    :param master_finger: fingerprint of the master's key, in the form of ``salt-key -F``.
    """
    program = Path(join_machine.__file__).read_text(encoding="utf-8")
    words = told(invite, secret, master, master_finger, "/", list(RESTART))
    body = {
        "write_files": [
            {"path": TOLD, "permissions": "0600", "content": words},
            {"path": PROGRAM, "permissions": "0700", "content": _Text(program)},
        ],
        "runcmd": [["python3", PROGRAM, TOLD]],
    }
    head = (
        "#cloud-config\n"
        f"# Whoever has this text can join as {invite.pattern} until {stamp(invite.expires)},\n"
        f"# {'once' if invite.uses == 1 else f'{invite.uses} times'}. Keep it as a password.\n"
    )
    return head + yaml.dump(body, Dumper=_Dumper, sort_keys=False, width=1000)
