"""Keys that stop the new release or change meaning, each with its own rule."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from . import keys
from .sections import keep, ordinary, put
from .work import Work

Rule = Callable[[Work, str, Any], None]
RULES: dict[str, Rule] = {}

_PUBLIC_URL = re.compile(r"^https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?(/[^?#\s]*)?$")


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for top keys."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


@rule("server_name")
def _server_name(work: Work, key: str, value: Any) -> None:
    work.say((key,), "kept", "it is the identity of the server and can never change")


@rule("report_stats")
def _report_stats(work: Work, key: str, value: Any) -> None:
    if value is None:
        return
    put(work, (key,), value)
    work.say((key,), "kept", "same meaning")


@rule("log_config")
def _log_config(work: Work, key: str, value: Any) -> None:
    text = work.file(str(value)) or ""
    reason = "our formula writes a log configuration of its own"
    if any(line.replace(" ", "").startswith("structured:true") for line in text.splitlines()):
        reason += "; the old one has structured: true, which 1.54 stopped accepting"
    work.say((key,), "replaced", reason)
    for word in ("SysLogHandler", "RemoteHandler", "SocketHandler", "HTTPHandler", "SMTPHandler"):
        if word in text:
            work.warn((key,), f"the old one sends logs elsewhere ({word})", "do so from journald")


@rule("account_threepid_delegates")
def _delegates(work: Work, key: str, value: Any) -> None:
    if isinstance(value, dict) and "email" in value:
        path = (key, "email")
        if value["email"]:
            work.say(
                path, "cannot-carry",
                "Synapse no longer lets an identity server verify e-mail addresses (1.66); "
                "the key alone stops it",
                todo="write an email: section with an SMTP server into the old homeserver.yaml",
            )
        else:
            work.say(path, "dropped-no-effect", "empty; yet the key alone would stop 1.163 (1.66)")
    ordinary(work, key, value)


@rule("trust_identity_server_for_password_resets")
def _trust(work: Work, key: str, value: Any) -> None:
    if value:
        work.say(
            (key,), "cannot-carry",
            "Synapse no longer leaves password resets to an identity server (1.48), and stops",
            todo="write an email: section with an SMTP server into the old homeserver.yaml",
        )
    else:
        work.say((key,), "dropped-no-effect", "it is off, and the feature is gone (1.48)")


@rule("invite_3pid_guest")
def _invite_guest(work: Work, key: str, value: Any) -> None:
    if value:
        work.say((key,), "cannot-carry", "the feature is gone, and the key stops Synapse")
    else:
        work.say((key,), "dropped-no-effect", "it is off, and the feature is gone")


@rule("enable_registration", "disable_registration")
def _registration(work: Work, key: str, value: Any) -> None:
    values = work.values
    if key == "enable_registration" and "disable_registration" in values:
        work.say((key,), "dropped-no-effect", "disable_registration overrules it")
        return
    on = _truth(value) if key == "enable_registration" else not _truth(value)
    guarded = (
        values.get("enable_registration_captcha")
        or values.get("registrations_require_3pid")
        or values.get("registration_requires_token")
        or _truth(values.get("enable_registration_without_verification", False))
    )
    if on and not guarded:
        put(work, ("enable_registration",), False)
        work.say(
            (key,), "cannot-carry",
            "registration is open to everybody without any check, with which Synapse no longer "
            "starts (1.56)",
            todo="write into the old homeserver.yaml how people are checked "
            "(registrations_require_3pid, enable_registration_captcha or, read only by the new "
            "release, registration_requires_token), or that nobody is "
            "(enable_registration_without_verification: true)",
        )
        return
    put(work, ("enable_registration",), on)
    if key == "enable_registration":
        work.say((key,), "kept", "same meaning")
    else:
        work.say(
            (key,), "renamed", "the opposite, under today's name", new_key="enable_registration"
        )


@rule("web_client_location")
def _web_client(work: Work, key: str, value: Any) -> None:
    if isinstance(value, str) and value.startswith(("http://", "https://")):
        put(work, (key,), value)
        work.say((key,), "kept", "same meaning")
    elif value:
        work.say(
            (key,), "cannot-carry",
            "Synapse no longer serves a web client from its disk and stops (1.53)",
            todo="serve the client by a web server and write its URL here",
        )
    else:
        work.say((key,), "dropped-no-effect", "it is empty")


@rule("enable_group_creation")
def _groups(work: Work, key: str, value: Any) -> None:
    if value:
        work.say(
            (key,), "cannot-carry",
            "communities (groups) are gone since 1.61; spaces took their place",
            todo="tell those who use communities to make spaces",
        )
    else:
        work.say((key,), "dropped-no-effect", "communities are gone since 1.61")


@rule("users_new_default_push_rules")
def _push_rules(work: Work, key: str, value: Any) -> None:
    if value:
        work.say(
            (key,), "cannot-carry", "the trial of other default push rules has ended",
            todo="nothing: these users get the default rules that everybody has",
        )
    else:
        work.say((key,), "dropped-no-effect", "it names nobody")


@rule("experimental_msc1849_support_enabled")
def _aggregations(work: Work, key: str, value: Any) -> None:
    if value:
        work.say((key,), "dropped-no-effect", "relations are always on now")
    else:
        work.say((key,), "cannot-carry", "relations can no longer be switched off")


@rule("experimental_features")
def _experiments(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, dict) or not value:
        work.say((key,), "dropped-no-effect", "it is empty")
        return
    for name, item in value.items():
        path = (key, str(name))
        if name == "msc3861":
            work.say(
                path, "cannot-carry",
                "removed in 1.157; matrix_authentication_service is its successor",
                todo="write the matrix_authentication_service section instead",
            )
        elif name in keys.EXPERIMENTS:
            keep(work, path, item)
        else:
            work.say(path, "dropped-no-effect", f"{work.target} has no such experiment (any more)")


@rule("access_token_lifetime")
def _token_lifetime(work: Work, key: str, value: Any) -> None:
    put(work, ("refreshable_access_token_lifetime",), value)
    work.say(
        (key,), "renamed", "today's name", new_key="refreshable_access_token_lifetime"
    )


@rule("use_presence")
def _presence(work: Work, key: str, value: Any) -> None:
    section = work.values.get("presence")
    if isinstance(section, dict) and section.get("enabled") is not None:
        work.say((key,), "dropped-no-effect", "presence.enabled overrules it")
        return
    put(work, ("presence", "enabled"), bool(value))
    work.say((key,), "renamed", "today's name", new_key="presence.enabled")


@rule("room_invite_state_types")
def _invite_state(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, list):
        ordinary(work, key, value)
        return
    if work.values.get("room_prejoin_state"):
        work.say((key,), "cannot-carry", "room_prejoin_state is there too; both stop Synapse")
        return
    put(
        work, ("room_prejoin_state",),
        {"disable_default_event_types": True, "additional_event_types": value},
    )
    work.say((key,), "renamed", "the same list in today's form", new_key="room_prejoin_state")


_OLD_RATES = {
    "rc_messages_per_second": ("rc_message", "per_second"),
    "rc_message_burst_count": ("rc_message", "burst_count"),
    "federation_rc_window_size": ("rc_federation", "window_size"),
    "federation_rc_sleep_limit": ("rc_federation", "sleep_limit"),
    "federation_rc_sleep_delay": ("rc_federation", "sleep_delay"),
    "federation_rc_reject_limit": ("rc_federation", "reject_limit"),
    "federation_rc_concurrent": ("rc_federation", "concurrent"),
}


@rule(*_OLD_RATES)
def _old_rate(work: Work, key: str, value: Any) -> None:
    path = _OLD_RATES[key]
    if path[0] in work.values or value is None:
        work.say((key,), "dropped-no-effect", f"{path[0]} overrules it")
        return
    put(work, path, value)
    work.say((key,), "renamed", "today's name", new_key=".".join(path))


@rule("limit_profile_requests_to_users_who_share_rooms")
def _limit_profiles(work: Work, key: str, value: Any) -> None:
    if value and not work.values.get("require_auth_for_profile_requests"):
        work.say(
            (key,), "cannot-carry",
            "without require_auth_for_profile_requests Synapse no longer starts (1.163)",
            todo="write require_auth_for_profile_requests: true into the old file",
        )
        return
    ordinary(work, key, value)


@rule("default_room_version")
def _room_version(work: Work, key: str, value: Any) -> None:
    if value is None:
        return
    if str(value) in keys.ROOM_VERSIONS:
        put(work, (key,), str(value))
        work.say((key,), "kept", "same meaning")
    else:
        work.say(
            (key,), "cannot-carry", f"{work.target} knows no room version {value!r} and stops",
            todo="name one of 1 to 12 in the old file",
        )


@rule("room_list_publication_rules")
def _publication(work: Work, key: str, value: Any) -> None:
    if value is not None:
        ordinary(work, key, value)


@rule("public_baseurl")
def _public_url(work: Work, key: str, value: Any) -> None:
    if value is None:
        ordinary(work, key, value)
    elif isinstance(value, str) and _PUBLIC_URL.match(value):
        put(work, (key,), value)
        work.say((key,), "kept", "same meaning")
    else:
        work.say(
            (key,), "cannot-carry",
            f"{value!r} is not the URL that clients use: 1.163 wants http:// or https://, a name, "
            "and no query",
            todo="write it so into the old file, such as https://chat.example.org/",
        )


@rule("matrix_authentication_service")
def _mas(work: Work, key: str, value: Any) -> None:
    if isinstance(value, dict) and value.get("enabled"):
        work.say(
            (key,), "cannot-carry",
            "with it Synapse starts only without passwords and password providers of its own",
            todo="take the authentication service into use after M1",
        )
    else:
        work.say((key,), "dropped-no-effect", "it is off")


@rule("caches")
def _caches(work: Work, key: str, value: Any) -> None:
    if isinstance(value, dict):
        if value.get("expiry_time"):
            put(work, (key, "expire_caches"), True)
            put(work, (key, "cache_entry_ttl"), value["expiry_time"])
            work.say(
                (key, "expiry_time"), "renamed", "today's names",
                new_key="caches.expire_caches, caches.cache_entry_ttl",
            )
        elif "expiry_time" in value:
            work.say((key, "expiry_time"), "dropped-no-effect", "it is empty: no expiry")
        if value.get("track_memory_usage"):
            needs_extra(work, (key, "track_memory_usage"))
    ordinary(work, key, value)


@rule("tls_certificate_path", "tls_private_key_path")
def _tls(work: Work, key: str, value: Any) -> None:
    work.say((key,), "replaced", "nginx ends TLS; Synapse's listeners are plain")


@rule("macaroon_secret_key")
def _macaroon(work: Work, key: str, value: Any) -> None:
    if value:
        ordinary(work, key, value)
    elif work.values.get("registration_shared_secret"):
        work.say(
            (key,), "cannot-carry",
            "empty: 1.40 derives it from the signing key, 1.163 takes registration_shared_secret; "
            "guest tokens and links of the old server would no longer be valid",
            todo="write macaroon_secret_key with the value of registration_shared_secret into the "
            "old file: guests must then come in anew",
        )
    else:
        work.say((key,), "dropped-no-effect", "empty: both releases derive it from the signing key")


@rule("enable_media_repo")
def _media_repo(work: Work, key: str, value: Any) -> None:
    if value is False:
        reason = "media is served by a worker, and what is adopted is one process"
        work.say((key,), "replaced", f"{reason}; see the problem")
        work.refuse((key,), reason, "let the main process serve media, then adopt again")
        return
    put(work, (key,), True)
    work.say((key,), "kept", "same meaning")


@rule("backup_media_store_path", "synchronous_backup_media_store")
def _backup_media(work: Work, key: str, value: Any) -> None:
    if key == "synchronous_backup_media_store" or not value:
        work.say((key,), "dropped-no-effect", "a detail of backup_media_store_path")
        return
    work.say(
        (key,), "cannot-carry", "a second copy of the media on the old machine's disk is not moved",
        todo="keep that copy where it is as a backup",
    )


def needs_extra(work: Work, path: tuple[str | int, ...]) -> bool:
    """Whether the new release has what a section needs; a verdict is given when not."""
    extra, distributions = keys.EXTRAS[".".join(map(str, path))]
    if work.can_import(distributions):
        return True
    work.say(
        path, "cannot-carry",
        f"the new release is built without the extra {extra!r} ({', '.join(distributions)}), "
        "and Synapse stops when the section is there",
        todo=f"add matrix-synapse[{extra}] to formulas/synapse/files/releases/ and lock it anew",
    )
    return False


def _truth(value: Any) -> bool:
    return str(value).strip().lower() in ("1", "true", "yes", "on", "y", "t")
