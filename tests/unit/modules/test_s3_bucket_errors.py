"""What S3's errors are said to be."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

import boto3
import botocore.exceptions
import pytest

from tests.lab.driver.settings import PROJECT
from tests.unit.modules.minion_modules import load

errors: Any = load("_modules", "s3_bucket_errors")
bucket: Any = load("_modules", "s3_bucket")

NOW = datetime(2026, 11, 28, 5, 0, tzinfo=UTC)
DOCS = (PROJECT / "docs/m5-s3.md").read_text("utf-8")
README = (PROJECT / "formulas/bucket/README.md").read_text("utf-8")


def fault(*names: str, **changes: Any) -> dict[str, Any]:
    return {
        "bucket": "lale-media", "endpoint": "https://s3.example", "region": "eu-central-1",
        "operation": "GetBucketPolicy", "aspect": "transport", "names": list(names), "status": 403,
        "message": "It said no.", "attempts": 4, "seconds": 7.4, "found": {}, "date": "",
        "now": NOW, **changes,
    }  # fmt: skip


@pytest.mark.parametrize("kind", [*errors.KINDS, "server", "other"])
def test_every_kind_names_the_bucket_the_endpoint_and_a_next_step(kind: str) -> None:
    names, status = errors.KINDS.get(kind, ("Unheard",)), 503 if kind == "server" else 403
    for name in names:
        given = fault(name, status=status)
        assert errors.kind(given) == kind
        said = errors.explain(given)
        assert said.startswith("bucket lale-media at https://s3.example: ")
        assert "{" not in said
        assert kind == "other" or "; " in said


def test_the_nearest_class_of_boto3_s_counts() -> None:
    for name, kind in {
        "SSLError": "tls", "ConnectTimeoutError": "network", "EndpointConnectionError": "network",
        "MetadataRetrievalError": "broken-credentials", "NoCredentialsError": "no-credentials",
        "SSOTokenLoadError": "broken-credentials", "ProxyConnectionError": "network",
    }.items():  # fmt: skip
        names = [made.__name__ for made in getattr(botocore.exceptions, name).__mro__]
        assert errors.kind(fault(*names, status=0)) == kind


def test_what_is_unheard_of_is_told_as_it_came() -> None:
    said = errors.explain(fault("Peculiar"))
    assert said.endswith(": GetBucketPolicy failed (Peculiar: It said no)")


def test_only_an_aspect_can_be_done_without() -> None:
    said = errors.explain(fault("NotImplemented"))
    assert said.endswith("take AWS S3, or say that you do without: `without: [transport]`")
    said = errors.explain(fault("NotImplemented", aspect="", operation="GetBucketLocation"))
    assert said.endswith("does not know GetBucketLocation (NotImplemented); take AWS S3")


@pytest.mark.parametrize(("found", "date", "off"), [
    ({"ServerTime": "2026-11-28T05:00:10Z"}, "", "10 s behind S3's"),
    ({"ServerTime": "2026-11-28T04:00:00Z"}, "", "3600 s ahead of S3's"),
    (
        {"ServerTime": "2026-11-28T05:00:10Z", "RequestTime": "20261128T050110Z"}, "",
        "60 s ahead of S3's",
    ),
    ({}, "Sat, 28 Nov 2026 06:00:00 GMT", "3600 s behind S3's"),
    ({}, "", "wrong"), ({"ServerTime": "yesterday"}, "", "wrong"),
])  # fmt: skip
def test_by_how_much_the_clock_is_wrong(found: dict[str, str], date: str, off: str) -> None:
    said = errors.explain(fault("RequestTimeTooSkewed", found=found, date=date))
    assert f"the clock of this machine is {off} (" in said


def test_an_action_is_named_as_iam_names_it() -> None:
    said = errors.explain(fault("AccessDenied", operation="GetBucketEncryption"))
    assert "may not s3:GetEncryptionConfiguration" in said
    said = errors.denied("b", "e", ["PutBucketPolicy", "GetBucketLifecycleConfiguration"])
    assert "may not s3:GetLifecycleConfiguration, s3:PutBucketPolicy" in said


def test_every_call_has_its_action_and_the_readme_lists_it() -> None:
    client = boto3.client("s3", region_name="us-east-1")
    known = client.meta.method_to_api_mapping
    methods = {f"{verb}_{noun}" for noun, _ in bucket.CALLS.values() for verb in ("get", "put")}
    methods |= {"get_bucket_location", "list_buckets", "create_bucket"}
    assert {known[method] for method in methods} == set(errors.ACTIONS)
    for action in errors.ACTIONS.values():
        assert action in README


def test_what_the_docs_say_of_an_error_is_what_is_said() -> None:
    files = ("_modules/s3_bucket", "_modules/s3_bucket_errors", "_modules/s3_bucket_rules",
             "_states/s3_bucket")  # fmt: skip
    text = "".join((PROJECT / f"salt/{name}.py").read_text("utf-8") for name in files)
    words = re.sub(r'"\n +f?"', "", text)
    words = re.sub(r"{[^}\n]*}", "…", words)
    rows = re.findall(r"^\| (`.*?`) \|", DOCS.partition("| the comment says |")[2], re.M)
    assert len(rows) > 20
    said = [part.strip() for row in rows for quoted in re.findall(r"`([^`]+)`", row)
            for part in quoted.replace("s3:", "").split("…")]  # fmt: skip
    assert [part for part in said if part not in words] == []


def test_the_bounds_of_a_call_are_half_a_minute() -> None:
    """Of a network that is gone, and of a server that says nothing; boto3 waits 1 + 2 + 4 s."""
    patience = bucket.PATIENCE
    for way in ("connect", "read"):
        assert patience["attempts"] * patience[way] + 7 <= 32
