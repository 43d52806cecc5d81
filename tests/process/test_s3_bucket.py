"""The media's bucket on moto's server, which plays AWS's API, and on a real `rclone serve s3`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from botocore.exceptions import ClientError

from tests.lab.driver.settings import PROJECT
from tests.process import s3_site, store
from tests.process.s3_site import KEYS, NAME, REGION, House

KMS_KEY = f"arn:aws:kms:{REGION}:123456789012:key/0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
TAGS = {"service": "matrix"}
ALL = ["public_access", "ownership", "encryption", "versioning", "transport", "lifecycle", "tags"]
#: A policy statement, a lifecycle rule and a tag of somebody else's.
STATEMENT = {
    "Sid": "Auditors", "Effect": "Allow", "Principal": {"AWS": "arn:aws:iam::999999999999:root"},
    "Action": "s3:GetBucketTagging", "Resource": f"arn:aws:s3:::{NAME}",
}  # fmt: skip
RULE = {
    "ID": "theirs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3},
}  # fmt: skip
TAG = {"Key": "cost-centre", "Value": "42"}


@pytest.fixture(scope="module")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_site.moto(tmp_path_factory.mktemp("moto")) as url:
        yield url


@pytest.fixture
def house(moto: str) -> House:
    s3_site.tell_moto(moto, "reset")
    return House(moto, KEYS)


def policy(client: Any) -> list[dict[str, Any]]:
    """The statements of the bucket's policy."""
    rows: list[dict[str, Any]] = json.loads(client.get_bucket_policy(Bucket=NAME)["Policy"])[
        "Statement"
    ]
    return rows


def snapshot(house: House) -> dict[str, Any]:
    """All that the store says of the bucket."""
    connection = {
        "region": house.region, "endpoint_url": house.endpoint, "ca": "", "account": "",
        "credentials": house.keys,
    }  # fmt: skip
    answers: dict[str, Any] = house.module.found(NAME, ALL, connection)
    return answers


def test_a_bucket_is_made_and_everything_is_set(house: House) -> None:
    done = house.present(tags=TAGS)
    assert done["result"] is True, done["comment"]
    assert list(done["changes"]) == ["bucket", *ALL]
    s3 = house.client()
    assert s3.get_bucket_location(Bucket=NAME)["LocationConstraint"] == REGION
    block = s3.get_public_access_block(Bucket=NAME)["PublicAccessBlockConfiguration"]
    assert list(block.values()) == [True, True, True, True]
    rules = s3.get_bucket_ownership_controls(Bucket=NAME)["OwnershipControls"]["Rules"]
    assert rules == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    encrypted = s3.get_bucket_encryption(Bucket=NAME)["ServerSideEncryptionConfiguration"]["Rules"]
    default = {"SSEAlgorithm": "AES256"}
    assert [rule["ApplyServerSideEncryptionByDefault"] for rule in encrypted] == [default]
    assert s3.get_bucket_versioning(Bucket=NAME)["Status"] == "Enabled"
    assert policy(s3) == [{
        "Sid": "SaltworksTlsOnly", "Effect": "Deny", "Principal": "*", "Action": "s3:*",
        "Resource": [f"arn:aws:s3:::{NAME}", f"arn:aws:s3:::{NAME}/*"],
        "Condition": {"Bool": {"aws:SecureTransport": "false"}},
    }]  # fmt: skip
    assert s3.get_bucket_lifecycle_configuration(Bucket=NAME)["Rules"] == [{
        "ID": "saltworks-media", "Status": "Enabled", "Filter": {"Prefix": ""},
        "Expiration": {"ExpiredObjectDeleteMarker": True},
        "NoncurrentVersionExpiration": {"NoncurrentDays": 30},
        "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 7},
    }]  # fmt: skip
    assert s3.get_bucket_tagging(Bucket=NAME)["TagSet"] == [{"Key": "service", "Value": "matrix"}]


def test_a_second_run_changes_nothing(house: House) -> None:
    house.present(tags=TAGS, kms_key=KMS_KEY)
    before = snapshot(house)
    for test in (False, True):
        done = house.present(test, tags=TAGS, kms_key=KMS_KEY)
        assert (done["result"], done["changes"]) == (True, {}), done
    assert snapshot(house) == before


def test_a_test_run_says_what_a_run_then_does_and_touches_nothing(house: House) -> None:
    said = house.present(test=True, tags=TAGS)
    assert said["result"] is None
    assert house.client().list_buckets()["Buckets"] == []
    assert house.present(tags=TAGS)["changes"] == said["changes"]
    before = snapshot(house)
    changed: dict[str, Any] = {"noncurrent_days": 90, "tags": {"service": "synapse"}}
    said = house.present(test=True, **changed)
    assert (said["result"], list(said["changes"])) == (None, ["lifecycle", "tags"])
    assert snapshot(house) == before
    assert house.present(**changed)["changes"] == said["changes"]


def test_the_oldest_region_is_made_without_its_name(moto: str, house: House) -> None:
    oldest = House(moto, KEYS, region="us-east-1")
    assert oldest.present()["result"] is True
    assert oldest.client().get_bucket_location(Bucket=NAME)["LocationConstraint"] is None
    assert oldest.present()["changes"] == {}


def encrypted_by(algorithm: str) -> Callable[[Any], Any]:
    default = {"SSEAlgorithm": algorithm}
    rules = {"Rules": [{"ApplyServerSideEncryptionByDefault": default}]}
    return lambda s3: s3.put_bucket_encryption(
        Bucket=NAME, ServerSideEncryptionConfiguration=rules
    )


def tidied(**changes: Any) -> Callable[[Any], Any]:
    """Our own lifecycle rule is changed by somebody."""

    def spoil(s3: Any) -> None:
        rules = s3.get_bucket_lifecycle_configuration(Bucket=NAME)["Rules"]
        rules = [{**rule, **changes} for rule in rules]
        s3.put_bucket_lifecycle_configuration(Bucket=NAME, LifecycleConfiguration={"Rules": rules})

    return spoil


def allowing(**changes: Any) -> Callable[[Any], Any]:
    """Our own policy statement is changed by somebody."""

    def spoil(s3: Any) -> None:
        rows = [{**row, **changes} for row in policy(s3)]
        said = json.dumps({"Version": "2012-10-17", "Statement": rows})
        s3.put_bucket_policy(Bucket=NAME, Policy=said)

    return spoil


@pytest.mark.parametrize(("aspect", "old", "spoil"), [
    ("public_access", None, lambda s3: s3.delete_public_access_block(Bucket=NAME)),
    (
        "public_access", {"RestrictPublicBuckets": False},
        lambda s3: s3.put_public_access_block(Bucket=NAME, PublicAccessBlockConfiguration={
            "BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True,
        }),
    ),
    ("ownership", None, lambda s3: s3.delete_bucket_ownership_controls(Bucket=NAME)),
    (
        "ownership", "ObjectWriter", lambda s3: s3.put_bucket_ownership_controls(
            Bucket=NAME, OwnershipControls={"Rules": [{"ObjectOwnership": "ObjectWriter"}]}
        ),
    ),
    ("encryption", None, lambda s3: s3.delete_bucket_encryption(Bucket=NAME)),
    ("encryption", {"algorithm": "aws:kms"}, encrypted_by("aws:kms")),
    (
        "versioning", "Suspended", lambda s3: s3.put_bucket_versioning(
            Bucket=NAME, VersioningConfiguration={"Status": "Suspended"}
        ),
    ),
    ("transport", None, lambda s3: s3.delete_bucket_policy(Bucket=NAME)),
    ("transport", {"Action": "s3:PutObject"}, allowing(Action="s3:PutObject")),
    ("transport", {"Condition": {}}, allowing(Condition={})),
    ("lifecycle", None, lambda s3: s3.delete_bucket_lifecycle(Bucket=NAME)),
    ("lifecycle", {"Status": "Disabled"}, tidied(Status="Disabled")),
    ("lifecycle", {"Expiration": {"Days": 30}}, tidied(Expiration={"Days": 30})),
    (
        "lifecycle", {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}},
        tidied(NoncurrentVersionExpiration={"NoncurrentDays": 1}),
    ),
    ("tags", None, lambda s3: s3.delete_bucket_tagging(Bucket=NAME)),
    (
        "tags", {"service": "irc"}, lambda s3: s3.put_bucket_tagging(
            Bucket=NAME, Tagging={"TagSet": [{"Key": "service", "Value": "irc"}]}
        ),
    ),
])  # fmt: skip
def test_drift_is_found_told_and_mended(
    house: House, aspect: str, old: Any, spoil: Callable[[Any], Any]
) -> None:
    new = house.present(tags=TAGS)["changes"][aspect]["new"]
    before = snapshot(house)
    spoil(house.client())
    for test in (True, False):
        done = house.present(test, tags=TAGS)
        assert done["result"] is (None if test else True), done["comment"]
        assert list(done["changes"]) == [aspect]
        told = done["changes"][aspect]
        if isinstance(old, dict):
            assert {key: told["old"][key] for key in old} == old
        else:
            assert told["old"] == old
        assert told["new"] == new
    assert snapshot(house) == before


def test_a_kms_key_is_taken_and_told(house: House) -> None:
    house.present()
    done = house.present(kms_key=KMS_KEY)
    assert done["changes"] == {"encryption": {
        "old": {"algorithm": "AES256"},
        "new": {"algorithm": "aws:kms", "kms_key": KMS_KEY, "bucket_key": True},
    }}  # fmt: skip
    encrypted = house.client().get_bucket_encryption(Bucket=NAME)
    (rule,) = encrypted["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["BucketKeyEnabled"] is True
    assert rule["ApplyServerSideEncryptionByDefault"]["KMSMasterKeyID"] == KMS_KEY


def test_what_is_somebody_else_s_stays(house: House) -> None:
    s3 = house.client()
    s3.create_bucket(Bucket=NAME, CreateBucketConfiguration={"LocationConstraint": REGION})
    said = json.dumps({"Version": "2008-10-17", "Id": "theirs", "Statement": STATEMENT})
    s3.put_bucket_policy(Bucket=NAME, Policy=said)
    s3.put_bucket_lifecycle_configuration(Bucket=NAME, LifecycleConfiguration={"Rules": [RULE]})
    s3.put_bucket_tagging(Bucket=NAME, Tagging={"TagSet": [TAG]})
    s3.put_object(Bucket=NAME, Key="logs/theirs", Body=b"x")
    done = house.present(tags=TAGS, prefix="media/")
    assert done["result"] is True, done["comment"]
    assert "bucket" not in done["changes"]
    whole = json.loads(s3.get_bucket_policy(Bucket=NAME)["Policy"])
    assert (whole["Version"], whole["Id"], whole["Statement"][0]) == (
        "2008-10-17", "theirs", STATEMENT
    )  # fmt: skip
    lifecycle = s3.get_bucket_lifecycle_configuration(Bucket=NAME)
    assert lifecycle["Rules"][0] == RULE
    assert lifecycle["Rules"][1]["Filter"] == {"Prefix": "media/"}
    assert TAG in s3.get_bucket_tagging(Bucket=NAME)["TagSet"]
    assert [row["Key"] for row in s3.list_objects_v2(Bucket=NAME)["Contents"]] == ["logs/theirs"]
    assert house.present(tags=TAGS, prefix="media/")["changes"] == {}


def test_a_rule_of_theirs_that_takes_media_away_is_told(house: House) -> None:
    house.present()
    s3 = house.client()
    rules = s3.get_bucket_lifecycle_configuration(Bucket=NAME)["Rules"]
    rules.append({**RULE, "Filter": {"Prefix": ""}})
    s3.put_bucket_lifecycle_configuration(Bucket=NAME, LifecycleConfiguration={"Rules": rules})
    done = house.present()
    assert (done["result"], done["changes"]) == (True, {})
    (said,) = done["warnings"]
    assert "rule theirs is not ours" in said


def test_a_policy_that_lets_everybody_in_is_refused_before_anything_changes(house: House) -> None:
    s3 = house.client()
    s3.create_bucket(Bucket=NAME, CreateBucketConfiguration={"LocationConstraint": REGION})
    row = {**STATEMENT, "Sid": "World", "Principal": {"AWS": "*"}}
    said = json.dumps({"Version": "2012-10-17", "Statement": [row]})
    s3.put_bucket_policy(Bucket=NAME, Policy=said)
    before = snapshot(house)
    done = house.present()
    assert (done["result"], done["changes"]) == (False, {})
    assert "statement World of its policy lets everybody in" in done["comment"]
    assert snapshot(house) == before


def test_a_bucket_of_another_account_is_refused(moto: str, house: House) -> None:
    def elsewhere(request: Any, **_: Any) -> None:
        request.headers["x-moto-account-id"] = "111111111111"

    other = house.client()
    other.meta.events.register("before-send.s3", elsewhere)
    other.create_bucket(Bucket=NAME, CreateBucketConfiguration={"LocationConstraint": REGION})
    done = house.present(tags=TAGS)
    assert (done["result"], done["changes"]) == (False, {})
    assert f"bucket {NAME} at {moto}: it is there, and it is somebody else's" in done["comment"]
    with pytest.raises(ClientError, match="NoSuchTagSet"):
        other.get_bucket_tagging(Bucket=NAME)


def test_a_bucket_in_another_region_is_refused(moto: str, house: House) -> None:
    s3 = House(moto, KEYS, region="eu-west-3").client()
    s3.create_bucket(Bucket=NAME, CreateBucketConfiguration={"LocationConstraint": "eu-west-3"})
    done = house.present(tags=TAGS)
    assert (done["result"], done["changes"]) == (False, {})
    assert f"it is in eu-west-3, not in {REGION}; correct `region`" in done["comment"]
    with pytest.raises(ClientError, match="NoSuchTagSet"):
        s3.get_bucket_tagging(Bucket=NAME)


def test_credentials_of_another_account_make_no_bucket(
    moto: str, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto)
    done = house.present(account="999999999999")
    assert (done["result"], done["changes"]) == (False, {})
    assert "of account 123456789012, `account` says 999999999999" in done["comment"]
    assert house.client().list_buckets()["Buckets"] == []
    assert house.present(account="123456789012")["result"] is True


def test_the_machine_s_own_credentials_are_taken(
    moto: str, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEYS["access_key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEYS["secret_key"])
    assert House(moto, {}).present()["result"] is True


@pytest.fixture
def synapse(moto: str, house: House) -> Iterator[Any]:
    """S3 by a key of Synapse's, which moto lets do what its policy says.

    Without our statement in the bucket's own policy: moto takes a Deny without its condition.
    """
    assert house.present(without=["transport"])["result"] is True
    house.client().put_object(Bucket=NAME, Key="there", Body=b"x")
    house.client().create_bucket(
        Bucket="not-media", CreateBucketConfiguration={"LocationConstraint": REGION}
    )
    iam = house.client("iam")
    iam.create_user(UserName="synapse")
    document = house.module.media_policy(NAME, REGION)
    iam.put_user_policy(UserName="synapse", PolicyName="media", PolicyDocument=document)
    key = iam.create_access_key(UserName="synapse")["AccessKey"]
    keys = {"access_key": key["AccessKeyId"], "secret_key": key["SecretAccessKey"]}
    s3_site.tell_moto(moto, "reset-auth", "0")
    yield house.client(keys=keys)
    s3_site.tell_moto(moto, "reset-auth", "inf")


def test_synapse_s_key_may_put_get_and_list_media(synapse: Any) -> None:
    target = {"Bucket": NAME, "Key": "local_content/ab/cd/picture"}
    synapse.put_object(Body=b"bytes", **target)
    assert synapse.get_object(**target)["Body"].read() == b"bytes"
    assert synapse.head_object(**target)["ContentLength"] == 5
    assert synapse.list_objects_v2(Bucket=NAME)["KeyCount"] == 2
    with pytest.raises(ClientError, match="NoSuchKey"):
        synapse.get_object(Bucket=NAME, Key="local_content/no/such/file")
    upload = synapse.create_multipart_upload(**target)["UploadId"]
    synapse.upload_part(UploadId=upload, PartNumber=1, Body=b"part", **target)
    synapse.abort_multipart_upload(UploadId=upload, **target)


@pytest.mark.parametrize(("method", "arguments"), [
    ("delete_object", {"Bucket": NAME, "Key": "there"}),
    ("delete_object", {"Bucket": NAME, "Key": "there", "VersionId": "1"}),
    ("get_object", {"Bucket": NAME, "Key": "there", "VersionId": "1"}),
    ("put_object_acl", {"Bucket": NAME, "Key": "a", "ACL": "public-read"}),
    ("list_buckets", {}),
    ("list_objects_v2", {"Bucket": "not-media"}),
    ("put_object", {"Bucket": "not-media", "Key": "a", "Body": b"x"}),
    ("get_object", {"Bucket": "not-media", "Key": "a"}),
    ("delete_bucket", {"Bucket": NAME}),
    ("create_bucket", {"Bucket": "one-more"}),
    ("put_bucket_versioning", {
        "Bucket": NAME, "VersioningConfiguration": {"Status": "Suspended"},
    }),
    ("delete_bucket_policy", {"Bucket": NAME}),
    ("put_bucket_policy", {"Bucket": NAME, "Policy": "{}"}),
    ("put_bucket_tagging", {"Bucket": NAME, "Tagging": {"TagSet": []}}),
    ("put_bucket_acl", {"Bucket": NAME, "ACL": "public-read"}),
    ("delete_public_access_block", {"Bucket": NAME}),
    ("delete_bucket_lifecycle", {"Bucket": NAME}),
    ("delete_bucket_encryption", {"Bucket": NAME}),
])  # fmt: skip
def test_and_nothing_else(synapse: Any, method: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        getattr(synapse, method)(**arguments)


def test_nor_many_at_once(synapse: Any) -> None:
    done = synapse.delete_objects(Bucket=NAME, Delete={"Objects": [{"Key": "there"}]})
    assert [row["Code"] for row in done["Errors"]] == ["AccessDenied"]
    assert synapse.list_objects_v2(Bucket=NAME)["KeyCount"] == 1


def test_a_key_that_may_too_little_is_told_all_that_it_lacks(moto: str, synapse: Any) -> None:
    keys = synapse._request_signer._credentials
    given = {"access_key": keys.access_key, "secret_key": keys.secret_key}
    done = House(moto, given).present(tags=TAGS, account="123456789012")
    assert (done["result"], done["changes"]) == (False, {})
    assert "s3:GetBucketLocation" in done["comment"]


def test_on_a_store_that_is_not_aws_s_what_is_left_out_is_said(tmp_path: Path) -> None:
    keys = {"access_key": store.KEYS[0], "secret_key": store.KEYS[1]}
    with store.site(tmp_path) as site:
        house = House(f"http://127.0.0.1:{site.port}", keys, region="us-east-1")
        done = house.present(without=ALL)
        assert (done["result"], list(done["changes"])) == (True, ["bucket"]), done["comment"]
        assert f"not looked after, as `without` says: {', '.join(ALL)}" in done["comment"]
        s3 = house.client()
        s3.put_object(Bucket=NAME, Key="local_content/ab/cd/picture", Body=b"bytes")
        stored = tmp_path / "store" / NAME / "local_content/ab/cd/picture"
        assert stored.read_bytes() == b"bytes"
        again = house.present(without=ALL)
        assert (again["result"], again["changes"]) == (True, {})
        assert "not looked after" in again["comment"]


def test_what_a_store_cannot_do_is_never_passed_over(tmp_path: Path) -> None:
    keys = {"access_key": store.KEYS[0], "secret_key": store.KEYS[1]}
    with store.site(tmp_path) as site:
        house = House(f"http://127.0.0.1:{site.port}", keys, region="us-east-1")
        for made in ({"bucket"}, set()):
            done = house.present(tags=TAGS)
            assert (done["result"], set(done["changes"])) == (False, made)
            assert "public_access, ownership, encryption, transport, lifecycle, tags" in (
                done["comment"]
            )
        # Of versioning it says that there is none; only when it is told to does it say no.
        done = house.present(without=[row for row in ALL if row != "versioning"])
        assert (done["result"], done["changes"]) == (False, {})
        assert "does not know PutBucketVersioning (NotImplemented)" in done["comment"]
        wrong = House(house.endpoint, {**keys, "secret_key": "another"}, region="us-east-1")
        assert "the key is not accepted (SignatureDoesNotMatch" in wrong.present()["comment"]


def salt_call(folder: Path, pillar: dict[str, Any], *words: str) -> Any:
    """A minion without a master applies the formula; what it returns."""
    config = {
        "file_client": "local", "file_roots": {"base": [str(PROJECT / "formulas")]},
        "pillar_roots": {"base": [str(folder / "pillar")]}, "root_dir": str(folder), "id": "one",
        "module_dirs": [str(PROJECT / "salt/_modules")], "enable_fqdns_grains": False,
        "states_dirs": [str(PROJECT / "salt/_states")], "log_file": str(folder / "log"),
    }  # fmt: skip
    (folder / "pillar").mkdir(exist_ok=True)
    (folder / "pillar/top.sls").write_text("base: {'*': [bucket]}")
    (folder / "pillar/bucket.sls").write_text(yaml.safe_dump({"bucket": pillar}))
    (folder / "minion").write_text(yaml.safe_dump(config))
    command = [str(Path(sys.executable).with_name("salt-call")), "--local", "--out=json"]
    command += ["--log-level=debug", f"--config-dir={folder}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert KEYS["secret_key"] not in done.stdout + done.stderr + (folder / "log").read_text()
    return json.loads(done.stdout)["local"]


def test_salt_applies_the_formula_and_tells_no_secret(house: House, tmp_path: Path) -> None:
    pillar = {
        "name": NAME, "region": REGION, "endpoint_url": house.endpoint, "tags": TAGS,
        "credentials": dict(KEYS), "kms_key": KMS_KEY,
    }  # fmt: skip
    (done,) = salt_call(tmp_path, pillar, "state.apply", "bucket").values()
    assert done["result"] is True, done["comment"]
    assert set(done["changes"]) == {"bucket", *ALL}
    (again,) = salt_call(tmp_path, pillar, "state.apply", "bucket").values()
    assert (again["result"], again["changes"]) == (True, {}), again["comment"]
    said = json.loads(salt_call(tmp_path, pillar, "s3_bucket.media_policy", NAME, REGION))
    assert said == house.salt["s3_bucket_rules.media_policy"](NAME, REGION)
    (refused,) = salt_call(tmp_path, {"kms": KMS_KEY}, "state.apply", "bucket").values()
    for word in ("pillar bucket, nothing was asked of S3", "`name` must be", "`region` must be",
                 "`kms` is no key of it"):  # fmt: skip
        assert word in refused["comment"]
