"""What the operator sees, and the small helpers around it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from saltworks import adopt
from saltworks.adopt.keys import BOTH, FIXED, NEW, SECRET_PATHS, WORKER_KEYS
from saltworks.adopt.model import dotted
from saltworks.adopt.rules import RULES
from saltworks.adopt.values import is_secret
from saltworks.adopt.work import version

from tests.unit.adopt import adopt_cases


def judge(name: str, **more: Any) -> adopt.Adoption:
    return adopt.judge(adopt_cases.found(adopt_cases.load(name)), **more)


def test_the_report_groups_by_verdict_and_ends_with_the_outcome() -> None:
    text = adopt.render(judge("typical-2021"))
    order = [text.index(title) for title in ("REPLACED (", "RENAMED (", "DROPPED,", "KEPT (")]
    assert order == sorted(order)
    assert "default_room_version (not in the old file)" in text
    assert text.endswith("verdicts, no problem.\n")


def test_the_report_of_a_refusal_says_what_to_do() -> None:
    text = adopt.render(judge("email-delegate"))
    assert text.startswith("CANNOT BE CARRIED (1)")
    assert "legacy.accepted_losses" in text
    assert "Not adopted. Nothing was changed" in text
    assert all(len(line) <= 130 for line in text.splitlines())


def test_the_map_names_the_machines_of_m2_in_a_comment() -> None:
    text = adopt.dump_map(judge("typical-2021").cluster_map)
    assert "#     synapse: {role: synapse, address: " in text
    assert "#     proxy: {role: proxy, address: " in text
    assert "pepper: {secret: pepper}" in text
    assert list(yaml.safe_load(text)) == ["cluster"]


def test_what_was_accepted_stands_in_the_map() -> None:
    outcome = judge("email-delegate", accepted=["account_threepid_delegates.email"])
    assert outcome.problems == []
    accepted = outcome.cluster_map["legacy"]["accepted_losses"]
    assert accepted == ["account_threepid_delegates.email"]
    row = outcome.verdict_of("account_threepid_delegates.email")
    assert row is not None
    assert row.verdict == "cannot-carry"


def test_accepting_a_section_covers_its_keys_and_no_key_that_only_begins_alike() -> None:
    assert judge("email-delegate", accepted=["account_threepid_delegates"]).problems == []
    assert judge("email-delegate", accepted=["account_threepid"]).problems != []


def test_adopting_twice_says_the_same() -> None:
    assert judge("typical-2021") == judge("typical-2021")


def test_what_was_found_is_not_changed() -> None:
    found = adopt_cases.found(adopt_cases.load("ldap-password-file"))
    before = repr(found)
    adopt.judge(found)
    assert repr(found) == before


def test_the_tables_do_not_contradict_each_other() -> None:
    tables = [BOTH, NEW, frozenset(FIXED), frozenset(WORKER_KEYS), frozenset(SECRET_PATHS)]
    for index, table in enumerate(tables):
        for other in tables[index + 1 :]:
            assert not table & other
    # A rule takes a key before the table does, so a table that decides alone needs none.
    assert not (frozenset(FIXED) | frozenset(WORKER_KEYS) | frozenset(SECRET_PATHS)) & set(RULES)


def test_requirements_give_the_modules_of_a_release() -> None:
    text = "# a comment\nauthlib==1.6.0 \\\n    --hash=sha256:ab\n-i x\nmatrix-synapse[a]==1\n"
    assert adopt.requirements(text) == ["authlib", "matrix-synapse"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("1.40.0", (1, 40, 0)), ("1.41.0rc1", (1, 41, 0)), (None, ()), ("unknown", ())],
)
def test_versions(text: str | None, numbers: tuple[int, ...]) -> None:
    assert version(text) == numbers


def test_paths() -> None:
    assert dotted(("listeners", 0, "resources", 1, "names")) == "listeners[0].resources[1].names"


@pytest.mark.parametrize(
    ("path", "value", "secret"),
    [
        (("modules", 0, "config", "bind_password"), "x", True),
        (("email", "smtp_pass"), "x", True),
        (("modules", 0, "config", "uri"), "https://user:word@host/", True),
        (("oidc_providers", 0, "client_secret_jwt_key", "key"), "x", True),
        (("sentry", "dsn"), "https://a@b/1", True),
        (("oidc_providers", 0, "token_endpoint"), "https://a/token", False),
        (("email", "validation_token_lifetime"), "1h", False),
        (("registration_requires_token",), True, False),
        (("old_signing_keys", "ed25519:a", "key"), "x", False),
        (("recaptcha_public_key",), "x", False),
        (("form_secret",), "", False),
        (("password_config", "enabled"), "only_for_reauth", False),
        (("email", "password_reset_template_html"), "a.html", False),
    ],
)
def test_what_smells_like_a_secret(path: tuple[str | int, ...], value: Any, secret: bool) -> None:
    assert is_secret(path, value) is secret


@pytest.mark.parametrize("value", [None, True, 5, 1.5, "x", [], [1], [None], {}, {"a": 1}, {1: 2}])
@pytest.mark.parametrize(
    "key",
    [
        "listeners", "database", "databases", "modules", "password_providers", "email", "caches",
        "room_invite_state_types", "rc_login", "presence", "oidc_providers", "server_name",
        "signing_key_path", "media_store_path", "app_service_config_files", "public_baseurl",
    ],
)
def test_no_value_of_a_wrong_type_is_a_traceback(key: str, value: Any) -> None:
    values = yaml.safe_load(adopt_cases.load("sqlite")["homeserver"])
    values[key] = value
    found = adopt_cases.found({"homeserver": yaml.safe_dump(values)})
    outcome = adopt.judge(found)
    adopt.render(outcome)
    adopt.dump_map(outcome.cluster_map)
