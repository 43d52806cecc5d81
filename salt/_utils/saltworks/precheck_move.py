"""The part of a precheck that is about Synapse's move to a machine of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import precheck_facts as shared
from . import verify
from .precheck_facts import Facts, Needs, Survey


def check(made: Survey, needs: Needs, facts: Facts) -> None:
    """Check that the new machine is empty, and that the database can be left behind."""
    machine = shared.of_role(facts.cmap, needs.alone) if needs.alone else None
    if machine and facts.audit is not None:
        _alone(made, machine, facts.audit)
    legacy = shared.of_role(facts.cmap, "legacy")
    if needs.leaves_database and legacy and facts.database is not None:
        _database(made, legacy, facts, facts.database)


def _alone(made: Survey, machine: str, told: Mapping[str, Any]) -> None:
    if not made.must(
        "error" not in told,
        machine,
        f"what runs there cannot be seen: {told.get('error')}",
        "see that systemctl and ss (iproute2) work there",
    ):
        return
    for kind, rows in verify.strangers(told).items():
        made.must(
            not rows,
            f"{machine}: {kind}",
            f"something else runs on {machine}: {'; '.join(rows)}",
            "stop and disable it, or choose an empty machine",
        )


def _database(made: Survey, machine: str, facts: Facts, found: Mapping[str, Any]) -> None:
    place = f"{machine}: database"
    if not made.must(
        "error" not in found,
        place,
        str(found.get("error")),
        "see that the database runs and that homeserver.yaml's account reaches it",
    ):
        return
    if found["engine"] == "postgresql":
        made.must(
            bool(found["ssl_on"]),
            place,
            f"PostgreSQL on {machine} has ssl off, and Synapse will reach it over the network, "
            "by TLS only",
            "set `ssl = on` with ssl_cert_file and ssl_key_file in postgresql.conf, then reload "
            "PostgreSQL (Debian's default is on, with the certificate of the package ssl-cert)",
        )
    if not shared.is_managed(facts):
        # That M1 comes first is said already, and it looks at the found server's updates.
        return
    pending = list((found["schema"] or {}).get("pending", []))
    shown = ", ".join(pending[:5]) + (" ..." if len(pending) > 5 else "")
    made.must(
        not pending,
        place,
        f"{len(pending)} background updates still run: {shown}",
        f"wait until salt {machine} synapse_db.schema /etc/synapse/homeserver.yaml shows none "
        "pending",
    )
