"""Old behaviour written down, where the new release would silently do something else."""

from __future__ import annotations

import json
from typing import Any

from .sections import put
from .work import Work

#: Rates of 1.40 for logins by address and by account; 1.163 allows 0.003 and 5.
_LOGIN = {"per_second": 0.17, "burst_count": 3}


def state(work: Work) -> None:
    """Add what the release found did by default and the new one does not.

    Nothing is stated over a value that the operator gave. How to turn each to the
    new behaviour later stands in the verdict and in docs/adopt.md.
    """
    values = work.values
    _authenticated_media(work)
    if _absent(work, "room_list_publication_rules", (1, 126)):
        _say(
            work, ("room_list_publication_rules",), [{"action": "allow"}],
            "before 1.126 everybody could publish rooms in the directory, now nobody by default",
            "set [] to let only admins publish",
        )
    _room_version(work)
    if _absent(work, "allow_device_name_lookup_over_federation", (1, 59)):
        _say(
            work, ("allow_device_name_lookup_over_federation",), True,
            "before 1.59 other servers were shown the names of devices, now they are hidden",
            "set false to hide them",
        )
    caches = values.get("caches")
    caches = caches if isinstance(caches, dict) else {}
    if work.old < (1, 53) and not caches.get("expiry_time") and "expire_caches" not in caches:
        _say(
            work, ("caches", "expire_caches"), False,
            "before 1.53 caches never expired, now they do after 30 minutes",
            "remove it to save memory",
        )
    if work.old[:2] == (1, 40):
        _login_rates(work)
    services = work.settings.get("app_service_config_files")
    if services and _absent(work, "use_appservice_legacy_authorization", (1, 90)):
        _say(
            work, ("use_appservice_legacy_authorization",), True,
            "before 1.90 application services got their token in the URL, now only in a header",
            "remove it once the services read the header",
        )
    if values.get("report_stats") is None:
        _say(
            work, ("report_stats",), False, "Synapse does not start without a choice here",
            "set true to report",
        )


def _absent(work: Work, key: str, since: tuple[int, int]) -> bool:
    """Whether a default that changed with a release is left to the default."""
    return work.values.get(key) is None and work.old < since


def _room_version(work: Work) -> None:
    if work.values.get("default_room_version") is not None:
        return
    if work.old[:2] == (1, 40):
        _say(
            work, ("default_room_version",), "6",
            "new rooms of 1.40 have version 6; 1.163 would make version 12, which clients of "
            "2021 do not understand",
            'set "12" once all clients are new',
        )
    else:
        work.warn(
            "default_room_version",
            "new rooms will have version 12; what they have now is not known",
            "write default_room_version into the old file to keep it",
        )


def _authenticated_media(work: Work) -> None:
    if _absent(work, "enable_authenticated_media", (1, 120)):
        _say(
            work, ("enable_authenticated_media",), False,
            "before 1.120 clients got media without a token; now new media would be invisible "
            "(404) to clients of 2021",
            "set true once all clients are new; media of before stays open",
        )


def _login_rates(work: Work) -> None:
    given: Any = work.values.get("rc_login")
    given = given if isinstance(given, dict) else {}
    for part in ("address", "account"):
        have = given.get(part)
        have = have if isinstance(have, dict) else {}
        missing = {key: rate for key, rate in _LOGIN.items() if key not in have}
        if not missing:
            continue
        for key, rate in missing.items():
            put(work, ("rc_login", part, key), rate)
        work.say(
            f"rc_login.{part} (default)", "replaced",
            "1.163 lets people log in far less often by default (0.003 a second, 5 at once). "
            f"Stated, as in 1.40: {json.dumps(missing)}",
            todo="remove it for today's limit", stated=True,
        )


def _say(
    work: Work, path: tuple[str, ...], value: Any, reason: str, later: str
) -> None:
    put(work, path, value)
    key = ".".join(path)
    shown = json.dumps(value)
    # An empty key in the old file already has its verdict there.
    if work.reading.where(path) and len(path) == 1:
        work.verdicts.pop(key, None)
        work.say(path, "replaced", f"it is empty; {reason}. Stated: {shown}", todo=later)
        return
    work.say(key, "replaced", f"{reason}. Stated: {shown}", todo=later, stated=True)
