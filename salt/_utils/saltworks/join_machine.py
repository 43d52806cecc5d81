"""Make a machine a minion that proves its invitation. It runs once, there, by cloud-init.

``join-machine <told>``, where the file ``told`` has, as JSON: ``pattern`` and ``secret`` of
the invite, ``master``, its ``master_finger``, ``root`` (``/``) and ``restart``, the command
that starts the minion. The master embeds this file's text into the machine's user-data; it
needs Python's standard library, openssl and an installed salt-minion, and nothing else.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

#: How long openssl may take for a key, and the minion to start, in seconds.
KEY_SECONDS, START_SECONDS = 60, 60

KEY_BITS = 3072


def plain(public_key: str) -> str:
    """A public key without what Salt and editors do to its lines' ends."""
    return "\n".join(filter(None, (line.strip() for line in public_key.splitlines())))


def proof_of(secret: str, minion: str, public_key: str) -> str:
    """What a machine with an invite's secret, an id and a key shows for it."""
    words = f"{minion}\n{plain(public_key)}"
    return hmac.new(secret.encode(), words.encode(), hashlib.sha256).hexdigest()


def minion_id(pattern: str, root: Path) -> str:
    """The machine's id: as invited; of a pattern, with what no other machine has for the star.

    :raises SystemExit: neither cloud-init nor systemd has named the machine.
    """
    if not pattern.endswith("*"):
        return pattern
    for name in ("var/lib/cloud/data/instance-id", "etc/machine-id"):
        path = root / name
        if path.is_file() and (own := path.read_text(encoding="ascii").strip()):
            return pattern[:-1] + hashlib.sha256(own.encode()).hexdigest()[:10]
    raise SystemExit(f"neither instance-id nor machine-id is in {root}: it cannot be named")


def public_key(folder: Path) -> str:
    """The minion's public key; the pair is made if it is not there.

    :param folder: ``/etc/salt/pki/minion``.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    private, public = folder / "minion.pem", folder / "minion.pub"
    if not private.exists():
        made = folder / ".minion.pem"
        bits = f"rsa_keygen_bits:{KEY_BITS}"
        _openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", bits, "-out", str(made))
        made.chmod(0o400)
        made.rename(private)
    text = _openssl("pkey", "-in", str(private), "-pubout")
    public.write_text(text, encoding="ascii")
    return text


def configuration(told: dict[str, Any], minion: str, proof: str) -> str:
    """The minion's settings; JSON is YAML."""
    settings = {
        "id": minion,
        "master": told["master"],
        "master_finger": told["master_finger"],
        "autosign_grains": ["join_proof"],
        "grains": {"join_proof": proof},
        # Asked again until it is admitted, also when somebody else was first with its id.
        "acceptance_wait_time": 2,
        "acceptance_wait_time_max": 10,
        "rejected_retry": True,
        # As formulas/base says it to minions later on.
        "request_channel_timeout": 15,
    }
    return json.dumps(settings, indent=1) + "\n"


def main(path: str) -> None:
    """Do it; the file with the secret is gone afterwards."""
    os.umask(0o077)
    told = json.loads(Path(path).read_text(encoding="utf-8"))
    root = Path(told["root"])
    minion = minion_id(told["pattern"], root)
    proof = proof_of(told["secret"], minion, public_key(root / "etc/salt/pki/minion"))
    target = root / "etc/salt/minion.d/saltworks-join.conf"
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    target.write_text(configuration(told, minion, proof), encoding="utf-8")
    Path(path).unlink()
    if told["restart"]:
        subprocess.run(told["restart"], check=True, timeout=START_SECONDS)
    print(f"{minion} asks {told['master']} to be admitted")


def _openssl(*words: str) -> str:
    done = subprocess.run(
        ["openssl", *words], check=True, timeout=KEY_SECONDS, stdout=subprocess.PIPE, text=True
    )
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1])
