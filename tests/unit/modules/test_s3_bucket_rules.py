"""The bucket's rules: what is wanted, what differs, what is written, what is other people's."""

from __future__ import annotations

import json
from typing import Any

import boto3
import pytest
import yaml

from tests.lab.driver.settings import PROJECT
from tests.unit.modules.minion_modules import load

rules: Any = load("_modules", "s3_bucket_rules")

KEY = "arn:aws:kms:eu-central-1:123456789012:key/0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
ARN = "arn:aws:s3:::lale-media"
README = (PROJECT / "formulas/bucket/README.md").read_text("utf-8")


def settings(**changes: Any) -> dict[str, Any]:
    """Those of the defaults."""
    return {
        "name": "lale-media", "region": "eu-central-1", "endpoint_url": "", "ca": "",
        "account": "", "prefix": "", "kms_key": "", "bucket_key": True, "noncurrent_days": 30,
        "upload_days": 7, "tags": {"service": "matrix"}, "without": [], **changes,
    }  # fmt: skip


def answers(wanted: dict[str, Any] | None = None) -> dict[str, Any]:
    """A bucket that is as it is wanted, as S3 would tell of it."""
    wanted = wanted or settings()
    made: dict[str, Any] = {}
    for aspect in rules.aspects(wanted):
        sent = rules.arguments(aspect, None, wanted)
        for inner in ("VersioningConfiguration", "LifecycleConfiguration", "Tagging"):
            sent = sent.get(inner, sent)
        made[aspect] = sent
    return made


def told(aspect: str, answer: Any, **changes: Any) -> dict[str, Any]:
    """What would change if S3 told this of one aspect, and all was well with the others."""
    wanted = settings(**changes)
    made: dict[str, Any] = rules.changes({**answers(wanted), aspect: answer}, wanted)
    return made


def policy(*statements: Any, **more: Any) -> dict[str, Any]:
    """An answer with a bucket policy."""
    return {"Policy": json.dumps({"Version": "2012-10-17", "Statement": statements, **more})}


def ours(**changes: Any) -> dict[str, Any]:
    """Our own statement."""
    row = {
        "Sid": "SaltworksTlsOnly", "Effect": "Deny", "Principal": "*", "Action": "s3:*",
        "Resource": [ARN, f"{ARN}/*"], "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }  # fmt: skip
    return {**row, **changes}


def test_the_partition_of_every_region_is_botocore_s() -> None:
    session = boto3.Session()
    regions = [
        (region, part) for part in session.get_available_partitions()
        for region in session.get_available_regions("s3", part)
    ]  # fmt: skip
    assert len(regions) > 40
    assert [(region, rules.partition(region)) for region, _ in regions] == regions
    assert all(rules.REGION.fullmatch(region) for region, _ in regions)
    assert rules.arn("a-b", "cn-north-1") == "arn:aws-cn:s3:::a-b"


def test_where_a_bucket_is() -> None:
    assert rules.location({"LocationConstraint": None}) == "us-east-1"
    assert rules.location({"LocationConstraint": "EU"}) == "eu-west-1"
    assert rules.location({"LocationConstraint": "eu-west-3"}) == "eu-west-3"


@pytest.mark.parametrize("changes", [
    {}, {"name": "a1.b-2"}, {"name": "a" * 63}, {"tags": {}}, {"prefix": "a/b/"},
    {"kms_key": KEY}, {"account": "123456789012"}, {"endpoint_url": "https://s3:9000"},
    {"endpoint_url": "http://[2001:db8::1]:9000/"}, {"ca": "/etc/ca.pem"},
    {"region": "cn-north-1", "kms_key": KEY.replace("aws:", "aws-cn:").replace(
        "eu-central-1", "cn-north-1"
    )},
])  # fmt: skip
def test_good_settings_are_taken(changes: dict[str, Any]) -> None:
    assert rules.problems(settings(**changes)) == []


@pytest.mark.parametrize(("key", "value"), [
    ("name", ""), ("name", "ab"), ("name", "Lale"), ("name", "a_b"), ("name", "-abc"),
    ("name", "a" * 64), ("name", "192.168.5.4"), ("name", "a..b"), ("name", None), ("name", 17),
    ("region", ""), ("region", "Europe"), ("region", None), ("region", "eu-central-1; x"),
    ("endpoint_url", "s3:9000"), ("endpoint_url", "https://s3/bucket"),
    ("endpoint_url", "https://key@s3"), ("endpoint_url", "https://s3:port"),
    ("endpoint_url", None), ("ca", "ca.pem"), ("account", 123456789012), ("account", "1234"),
    ("prefix", "media"), ("prefix", "/media/"), ("prefix", "a//"), ("prefix", "a*/"),
    ("kms_key", "alias/media"), ("kms_key", KEY.replace("eu-central-1", "eu-west-1")),
    ("kms_key", KEY.replace("arn:aws:", "arn:aws-cn:")), ("bucket_key", "yes"),
    ("noncurrent_days", 0), ("noncurrent_days", "30"), ("upload_days", True), ("upload_days", 1.5),
    ("tags", {"a": 1}), ("tags", {"aws:a": "1"}), ("tags", {"": "1"}), ("tags", ["a"]),
    ("tags", {"a": "x" * 257}), ("tags", {str(n): "" for n in range(51)}),
    ("without", "encryption"), ("without", ["bucket"]), ("without", [["x"]]),
])  # fmt: skip
def test_a_wrong_setting_is_named_with_its_value(key: str, value: Any) -> None:
    (said,) = rules.problems(settings(**{key: value}))
    assert said.startswith(f"`{key}` must")
    assert said.endswith(f"(it is {value!r})")


def test_all_wrong_settings_are_named_at_once() -> None:
    said = rules.problems(settings(name="", region="", kms_key="x", without=["encryption"]))
    assert [row.split("`")[1] for row in said] == ["name", "region", "kms_key", "kms_key"]
    assert "`without` names encryption" in said[-1]


@pytest.mark.parametrize(("given", "right"), [
    ({}, True), ({"access_key": "", "secret_key": "", "session_token": ""}, True),
    ({"access_key": "a", "secret_key": "b"}, True),
    ({"access_key": "a", "secret_key": "b", "session_token": "c"}, True),
    ({"access_key": "a"}, False), ({"secret_key": "b"}, False), ({"session_token": "c"}, False),
    ({"access_key": 1234, "secret_key": "b"}, False), ({"key": "a"}, False), (None, False),
    ("a:b", False),
])  # fmt: skip
def test_credentials_are_whole_or_not_there(given: Any, right: bool) -> None:
    said = rules.credentials_problems(given)
    assert (said == []) is right
    assert "1234" not in "".join(said)


def test_the_example_and_the_defaults() -> None:
    example = yaml.safe_load((PROJECT / "formulas/bucket/pillar.example").read_text("utf-8"))
    flat = example["bucket"]
    assert rules.credentials_problems(flat.pop("credentials")) == []
    assert rules.problems(settings(**flat)) == []
    for aspect in rules.ASPECTS:
        assert f"`{aspect}`" in README


def test_which_aspects_are_looked_after() -> None:
    assert rules.aspects(settings()) == list(rules.ASPECTS)
    assert "tags" not in rules.aspects(settings(tags={}))
    left = rules.aspects(settings(without=["lifecycle", "public_access"]))
    assert left == ["ownership", "encryption", "versioning", "transport", "tags"]


@pytest.mark.parametrize(("aspect", "answer"), [
    ("public_access", {"PublicAccessBlockConfiguration": {}}),
    ("ownership", {"OwnershipControls": {}}),
    ("encryption", {"ServerSideEncryptionConfiguration": {}}),
    ("transport", {"Policy": "<?xml version='1.0'?><ListBucketResult/>"}),
    ("transport", {"Policy": "[]"}), ("lifecycle", {}), ("tags", {}),
])  # fmt: skip
def test_an_answer_to_another_question_is_told_from_s3_s(aspect: str, answer: Any) -> None:
    assert not rules.understood(aspect, answer)
    assert rules.understood(aspect, None)
    assert rules.understood(aspect, answers()[aspect])


def test_versioning_that_nobody_ever_switched_on_has_an_empty_answer() -> None:
    assert rules.understood("versioning", {})
    assert told("versioning", {}) == {"versioning": {"old": None, "new": "Enabled"}}


def test_a_bucket_that_is_as_wanted_changes_nothing() -> None:
    for wanted in (settings(), settings(kms_key=KEY, prefix="a/"), settings(tags={})):
        assert rules.changes(answers(wanted), wanted) == {}


def test_where_there_is_no_bucket_everything_is_new() -> None:
    made = rules.changes(None, settings(without=["transport"]))
    assert made["bucket"] == {"old": None, "new": "lale-media in eu-central-1"}
    assert list(made) == ["bucket", *(a for a in rules.ASPECTS if a != "transport")]
    assert {row["old"] for row in made.values()} == {None}


@pytest.mark.parametrize("answer", [
    policy(ours()), policy(ours(Principal={"AWS": "*"})), policy(ours(Principal={"AWS": ["*"]})),
    policy(ours(Action=["s3:*"], Resource=[f"{ARN}/*", ARN])),
    policy(ours(Condition={"Bool": {"aws:securetransport": ["false"]}})),
    policy(ours(Condition={"Bool": {"aws:SecureTransport": False}})),
    policy({"Sid": "Theirs", "Effect": "Allow"}, ours()),
    {"Policy": json.dumps({"Version": "2012-10-17", "Statement": ours()})},
])  # fmt: skip
def test_a_statement_that_means_the_same_stays(answer: Any) -> None:
    assert told("transport", answer) == {}


@pytest.mark.parametrize("statement", [
    ours(Effect="Allow"), ours(Action="s3:GetObject"), ours(Resource=[ARN]), ours(Condition={}),
    ours(Principal={"AWS": "arn:aws:iam::123456789012:root"}), ours(Sid="Another"),
    ours(Condition={"Bool": {"aws:SecureTransport": "true"}}),
    ours(Condition={"BoolIfExists": {"aws:SecureTransport": "false"}}),
])  # fmt: skip
def test_one_that_means_something_else_does_not(statement: Any) -> None:
    assert list(told("transport", policy(statement))) == ["transport"]


def test_a_policy_is_written_with_all_that_was_in_it() -> None:
    theirs = {"Sid": "Theirs", "Effect": "Deny", "Principal": "*", "Action": "s3:DeleteBucket"}
    answer = policy(theirs, ours(Action="x"), Version="2008-10-17", Id="house")
    sent = json.loads(rules.arguments("transport", answer, settings())["Policy"])
    assert sent == {"Version": "2008-10-17", "Id": "house", "Statement": [theirs, ours()]}


def test_a_lifecycle_rule_in_its_old_form_is_the_same() -> None:
    (rule,) = answers()["lifecycle"]["Rules"]
    del rule["Filter"]
    assert told("lifecycle", {"Rules": [{**rule, "Prefix": ""}]}) == {}
    assert told("lifecycle", {"Rules": [{**rule, "Filter": {}}]}) == {}


@pytest.mark.parametrize("changes", [
    {"Filter": {"Prefix": "a/"}}, {"Filter": {"Tag": {"Key": "a", "Value": "b"}}},
    {"Filter": {"And": {"Prefix": "", "ObjectSizeLessThan": 5}}}, {"Status": "Disabled"},
    {"Filter": {"ObjectSizeGreaterThan": 500}},
    {"Expiration": {"Days": 3}}, {"Transitions": [{"Days": 3, "StorageClass": "GLACIER"}]},
    {"NoncurrentVersionExpiration": {"NoncurrentDays": 30, "NewerNoncurrentVersions": 9}},
])  # fmt: skip
def test_whatever_somebody_did_to_our_rule_is_seen(changes: Any) -> None:
    (rule,) = answers()["lifecycle"]["Rules"]
    made = told("lifecycle", {"Rules": [{**rule, **changes}]})
    assert list(made) == ["lifecycle"]
    assert made["lifecycle"]["new"] == rule
    for key, value in changes.items():
        said = made["lifecycle"]["old"][key]
        assert said == value or said == {"Prefix": "", **value}


def test_a_lifecycle_is_written_with_all_that_was_in_it() -> None:
    theirs = {"ID": "theirs", "Status": "Enabled", "Prefix": "old/", "Expiration": {"Days": 3}}
    unnamed = {"Status": "Enabled", "Filter": {"Prefix": "x/"}, "Expiration": {"Days": 4}}
    answer = {
        "Rules": [theirs, {"ID": rules.RULE_ID, "Status": "Disabled"}, unnamed],
        "TransitionDefaultMinimumObjectSize": "varies_by_storage_class",
    }  # fmt: skip
    sent = rules.arguments("lifecycle", answer, settings(prefix="a/", noncurrent_days=9))
    assert sent["TransitionDefaultMinimumObjectSize"] == "varies_by_storage_class"
    first, second, third = sent["LifecycleConfiguration"]["Rules"]
    assert (first, second) == (theirs, unnamed)
    assert third["Filter"] == {"Prefix": "a/"}
    assert third["NoncurrentVersionExpiration"] == {"NoncurrentDays": 9}
    bare = rules.arguments("lifecycle", None, settings())
    assert list(bare) == ["LifecycleConfiguration"]


def encrypted(algorithm: str, key: str = "", **more: Any) -> dict[str, Any]:
    default = {"SSEAlgorithm": algorithm, **({"KMSMasterKeyID": key} if key else {})}
    rule = {"ApplyServerSideEncryptionByDefault": default, **more}
    return {"ServerSideEncryptionConfiguration": {"Rules": [rule]}}


def test_what_encryption_is_equal() -> None:
    assert told("encryption", encrypted("AES256", BucketKeyEnabled=True)) == {}
    kms = {"kms_key": KEY}
    assert told("encryption", encrypted("aws:kms", KEY, BucketKeyEnabled=True), **kms) == {}
    for answer in (
        encrypted("AES256"), encrypted("aws:kms", BucketKeyEnabled=True), encrypted("aws:kms", KEY),
        encrypted("aws:kms", KEY.replace("0f", "1f"), BucketKeyEnabled=True),
        encrypted("aws:kms:dsse", KEY, BucketKeyEnabled=True),
    ):
        assert list(told("encryption", answer, **kms)) == ["encryption"]
    assert list(told("encryption", encrypted("aws:kms", KEY))) == ["encryption"]


def test_encryption_is_written_with_what_else_is_refused() -> None:
    blocked: dict[str, Any] = {"BlockedEncryptionTypes": {"EncryptionType": ["SSE-C"]}}
    answer = encrypted("aws:kms", KEY, BucketKeyEnabled=True, **blocked)
    assert rules.arguments("encryption", answer, settings()) == encrypted("AES256", **blocked)
    sent = rules.arguments("encryption", answer, settings(kms_key=KEY, bucket_key=False))
    assert sent == encrypted("aws:kms", KEY, BucketKeyEnabled=False, **blocked)


def test_tags_are_told_and_written_beside_others() -> None:
    answer = {"TagSet": [
        {"Key": "aws:cloudformation:stack-name", "Value": "s"}, {"Key": "service", "Value": "irc"},
    ]}  # fmt: skip
    made = told("tags", answer, tags={"service": "matrix", "a": "b"})
    assert made == {"tags": {"old": {"service": "irc"}, "new": {"service": "matrix", "a": "b"}}}
    sent = rules.arguments("tags", answer, settings())
    assert sent["Tagging"]["TagSet"] == [
        {"Key": "aws:cloudformation:stack-name", "Value": "s"},
        {"Key": "service", "Value": "matrix"},
    ]
    assert told("tags", {"TagSet": [*answer["TagSet"][:1], *sent["Tagging"]["TagSet"]]}) == {}


WORLD = {"Sid": "World", "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject"}


@pytest.mark.parametrize(("statements", "changes", "count"), [
    ([WORLD], {}, 1), ([{**WORLD, "Principal": {"AWS": ["*"]}}], {}, 1), ([WORLD, WORLD], {}, 2),
    ([{**WORLD, "Effect": "Deny"}], {}, 0),
    ([{**WORLD, "Principal": {"AWS": "arn:aws:iam::123456789012:root"}}], {}, 0),
    ([{**WORLD, "Condition": {"StringEquals": {"aws:SourceVpce": "v"}}}], {}, 0),
    # Nothing is to be written, so nothing is refused.
    ([WORLD, ours()], {}, 0), ([WORLD], {"without": ["transport"]}, 0),
    ([WORLD], {"without": ["public_access"]}, 0),
])  # fmt: skip
def test_a_policy_for_everybody_is_refused_where_it_is_in_the_way(
    statements: Any, changes: dict[str, Any], count: int
) -> None:
    found = {**answers(), "transport": policy(*statements)}
    said = rules.refused(found, settings(**changes))
    assert len(said) == count
    assert all("World" in row and "remove that statement" in row for row in said)
    assert rules.refused(None, settings()) == []


@pytest.mark.parametrize(("rule", "prefix", "warned"), [
    ({"Filter": {"Prefix": ""}}, "", True), ({"Filter": {}}, "media/", True),
    ({"Prefix": "media/old/"}, "media/", True), ({"Filter": {"Prefix": "logs/"}}, "media/", False),
    ({"Filter": {"Prefix": "logs/"}}, "", True),
    ({"Filter": {"And": {"Prefix": "logs/", "ObjectSizeLessThan": 9}}}, "media/", False),
    ({"Filter": {}, "Status": "Disabled"}, "", False), ({"Filter": {}, "ID": "x"}, "", True),
    ({"Filter": {}, "Expiration": {"ExpiredObjectDeleteMarker": True}}, "", False),
    ({"Filter": {}, "ID": "saltworks-media"}, "", False),
])  # fmt: skip
def test_a_rule_that_takes_media_away_is_warned_of(rule: Any, prefix: str, warned: bool) -> None:
    row = {"ID": "theirs", "Status": "Enabled", "Expiration": {"Days": 30}, **rule}
    found = {"lifecycle": {"Rules": [row]}}
    said = rules.warnings(found, settings(prefix=prefix))
    assert [row["ID"] in line and "media would be gone" in line for line in said] == [True] * warned
    assert rules.warnings(None, settings()) == []


def test_synapse_s_policy_is_what_it_needs() -> None:
    assert rules.media_policy("lale-media", "eu-central-1") == {
        "Version": "2012-10-17",
        "Statement": [
            {
                "Sid": "PutAndGetMedia", "Effect": "Allow",
                "Action": ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"],
                "Resource": f"{ARN}/*",
            },
            {
                "Sid": "ListMedia", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": ARN,
            },
        ],
    }  # fmt: skip


def test_synapse_s_policy_is_narrowed_to_the_prefix_and_the_key() -> None:
    media, listing, key = rules.media_policy("b", "us-gov-west-1", "media/", KEY)["Statement"]
    assert media["Resource"] == "arn:aws-us-gov:s3:::b/media/*"
    assert listing["Resource"] == "arn:aws-us-gov:s3:::b"
    assert listing["Condition"] == {"StringLike": {"s3:prefix": "media/*"}}
    assert (key["Resource"], key["Action"]) == (KEY, ["kms:GenerateDataKey", "kms:Decrypt"])


def test_nothing_here_deletes() -> None:
    for name in ("_modules/s3_bucket", "_modules/s3_bucket_rules", "_states/s3_bucket"):
        assert "delete_" not in (PROJECT / f"salt/{name}.py").read_text("utf-8")
    assert "Delete" not in json.dumps(rules.media_policy("b", "eu-central-1", "a/", KEY))
