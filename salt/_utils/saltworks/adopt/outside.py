"""Keys by which Synapse needs something outside itself: mail, files, packages, services."""

from __future__ import annotations

from typing import Any

from .rules import needs_extra, rule
from .sections import keep, ordinary, put
from .values import LOOPBACK, Lost, carry_path
from .work import Work


@rule("email")
def _email(work: Work, key: str, value: Any) -> None:
    if isinstance(value, dict) and value:
        if "riot_base_url" in value:
            old = (key, "riot_base_url")
            if "client_base_url" in value:
                work.say(old, "dropped-no-effect", "client_base_url overrules it")
            else:
                put(work, (key, "client_base_url"), value["riot_base_url"])
                work.say(old, "renamed", "today's name", new_key="email.client_base_url")
        if "redact_content" in value:
            if value["redact_content"] is None:
                work.say((key, "redact_content"), "dropped-no-effect", "it is empty")
            else:
                put(work, ("push", "include_content"), not value["redact_content"])
                work.say(
                    (key, "redact_content"), "renamed", "the opposite, under today's name",
                    new_key="push.include_content",
                )
        _mail_server(work, value)
    ordinary(work, key, value)


def _mail_server(work: Work, value: dict[str, Any]) -> None:
    if not value.get("notif_from"):
        work.refuse(
            ("email",), "email.notif_from is missing, without which Synapse does not start",
            "write the sender's address, or remove the section",
        )
    for name, default in (("smtp_host", "localhost"), ("smtp_port", 25)):
        if name not in value:
            put(work, ("email", name), default)
    host = str(value.get("smtp_host", "localhost"))
    if LOOPBACK.match(host):
        # By its name the mail server may be reached on either family; a relay needs one address.
        numeric = host if host.startswith("127.") else "127.0.0.1"
        # The port is taken from the settings, where its key stands beside the host's.
        work.loopback.append({"path": "email.smtp_host", "host": numeric, "port": None})
        if "smtp_host" in value:
            put(work, ("email", "smtp_host"), value["smtp_host"])
            work.say(("email", "smtp_host"), "kept", "same meaning; noted as a loopback address")


@rule("user_consent")
def _consent(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, dict):
        ordinary(work, key, value)
        return
    try:
        if value.get("template_dir"):
            carry_path(work, (key, "template_dir"), str(value["template_dir"]))
    except Lost as lost:
        work.say((key,), "cannot-carry", lost.what, todo=lost.todo)
        return
    ordinary(work, key, value)


@rule("saml2_config", "jwt_config", "oidc_config", "sentry", "opentracing", "redis")
def _with_extra(work: Work, key: str, value: Any) -> None:
    on = bool(value) and not (isinstance(value, dict) and value.get("enabled") is False)
    if key in ("redis", "opentracing", "oidc_config") and isinstance(value, dict):
        on = bool(value.get("enabled"))
    if not on:
        work.say((key,), "dropped-no-effect", "it is off")
    elif needs_extra(work, (key,)):
        ordinary(work, key, value)


@rule("oidc_providers")
def _oidc(work: Work, key: str, value: Any) -> None:
    if not value:
        work.say((key,), "dropped-no-effect", "the list is empty")
    elif needs_extra(work, (key,)) and isinstance(value, list):
        for index, item in enumerate(value):
            keep(work, (key, index), item)


@rule("url_preview_enabled")
def _preview(work: Work, key: str, value: Any) -> None:
    if not value or needs_extra(work, (key,)):
        ordinary(work, key, value)


@rule("app_service_config_files")
def _appservices(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, list) or not value:
        ordinary(work, key, value)
        return
    try:
        carried = [carry_path(work, (key, index), str(item)) for index, item in enumerate(value)]
    except Lost as lost:
        work.say((key,), "cannot-carry", lost.what, todo=lost.todo)
        return
    put(work, (key,), carried)
    work.say((key,), "kept", "the registration files go along, as secrets", new_key=key)
    for index, item in enumerate(value):
        text = work.file(str(item)) or ""
        if any(host in text for host in ("://localhost", "://127.0.0.1", "://[::1]")):
            work.warn(
                (key, index), f"{item} reaches its service through loopback",
                "before M2, let the service listen for Synapse's new machine and change the url",
            )


@rule("federation_custom_ca_list")
def _ca_list(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, list):
        ordinary(work, key, value)
        return
    try:
        put(work, (key,), [
            carry_path(work, (key, index), str(item)) for index, item in enumerate(value)
        ])
    except Lost as lost:
        work.say((key,), "cannot-carry", lost.what, todo=lost.todo)
        return
    work.say((key,), "kept", "the certificates go along")
