"""Whatever S3 or the way to it does: the answer says what and what next, and nothing is changed."""

from __future__ import annotations

import json
import logging
import socket
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from saltworks import pki

from tests.process import s3_site
from tests.process.front_door import free_ports
from tests.process.s3_site import KEYS, NAME, REGION, Answer, House, Stub, fault, located

#: What a second may be late on a busy machine.
SLACK = 8


@pytest.fixture
def stub() -> Iterator[Stub]:
    with s3_site.stub() as made:
        yield made


def house(url: str, **more: Any) -> House:
    """With the bounds of a test that is about words, and not about seconds."""
    made = House(url, more.pop("keys", KEYS), **more)
    made.module.PATIENCE.update(attempts=2, read=1)
    vars(made.module).update(SETTLE_SECONDS=1, LOOK_SECONDS=0.1)
    return made


def in_turn(*answers: Answer) -> Callable[[], Answer]:
    """One after the other; the last of them from then on."""
    rows = iter(answers)
    return lambda: next(rows, answers[-1])


def said(done: dict[str, Any], url: str, *words: str) -> None:
    """It failed, named the place and these words, and no secret."""
    assert done["result"] is False
    assert f"bucket {NAME} at {url}: " in done["comment"]
    for word in words:
        assert word in done["comment"], done["comment"]
    assert KEYS["secret_key"] not in done["comment"]


REFUSALS: list[tuple[str, int, str, str, tuple[str, ...]]] = [
    ("expired", 400, "ExpiredToken", "", ("have expired (ExpiredToken)", "renew them")),
    ("deleted key", 403, "InvalidAccessKeyId", "", ("not accepted", "compare `credentials`")),
    ("wrong secret", 403, "SignatureDoesNotMatch", "", ("not accepted", "compare `credentials`")),
    ("wrong token", 400, "InvalidToken", "", ("not accepted", "compare `credentials`")),
    (
        "region by redirect", 301, "PermanentRedirect", "<Endpoint>eu-west-3.example</Endpoint>",
        (f"it is not in {REGION} (S3 names eu-west-3.example)", "correct `region`"),
    ),
    (
        "region by its signature", 400, "AuthorizationHeaderMalformed",
        "<Region>eu-west-3</Region>",
        (f"it is not in {REGION} (S3 names eu-west-3)", "correct `region`"),
    ),
    ("throttled", 503, "SlowDown", "", ("no more requests for now (SlowDown)", "2 attempts")),
    ("trouble", 500, "InternalError", "", ("trouble of its own (500 InternalError", "2 attempts")),
    ("away", 503, "ServiceUnavailable", "", ("trouble of its own (503", "run again in some minut")),
    ("whatever", 400, "Peculiar", "", ("GetBucketLocation failed (Peculiar: Peculiar)",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("status", "code", "more", "words"), [row[1:] for row in REFUSALS],
    ids=[row[0] for row in REFUSALS],
)  # fmt: skip
def test_a_refusal_is_explained_and_nothing_is_changed(
    stub: Stub, status: int, code: str, more: str, words: tuple[str, ...]
) -> None:
    stub.answers["GET location"] = (status, {}, fault(code, more=more))
    done = house(stub.url).present()
    said(done, stub.url, *words, "nothing was changed")
    assert (done["changes"], stub.wrote) == ({}, [])


def test_a_bucket_that_one_may_not_ask_about_is_somebody_else_s(stub: Stub) -> None:
    stub.answers["GET location"] = (403, {}, fault("AccessDenied", "Access Denied"))
    stub.answers["GET"] = s3_site.listing("another")
    said(house(stub.url).present(), stub.url, "it is somebody else's", "choose another `name`")
    stub.answers["GET"] = s3_site.listing(NAME)
    said(house(stub.url).present(), stub.url, "the key may not s3:GetBucketLocation")
    stub.answers["GET"] = (403, {}, fault("AccessDenied", "Access Denied"))
    done = house(stub.url).present()
    said(done, stub.url, "may not s3:GetBucketLocation, s3:ListAllMyBuckets;", "give `account`")
    done = house(stub.url).present(account="123456789012")
    said(done, stub.url, "the key may not s3:GetBucketLocation, or the bucket is somebody else's")
    assert stub.headers["x-amz-expected-bucket-owner"] == "123456789012"
    assert stub.wrote == []


def test_a_bucket_of_somebody_who_lets_us_in_is_refused_too(stub: Stub) -> None:
    stub.answers["GET"] = s3_site.listing("another")
    said(house(stub.url).present(), stub.url, "it is somebody else's", "nothing was changed")
    assert stub.wrote == []


def test_who_may_not_list_buckets_can_say_whose_it_is(stub: Stub) -> None:
    stub.answers["GET"] = (403, {}, fault("AccessDenied", "Access Denied"))
    done = house(stub.url).present(test=True)
    said(done, stub.url, "the key may not s3:ListAllMyBuckets", "or give `account` in the pillar")
    assert house(stub.url).present(test=True, account="123456789012")["result"] is None


def test_every_action_that_is_missing_is_named_at_once(stub: Stub) -> None:
    for query in ("policy", "lifecycle", "encryption"):
        stub.answers[f"GET {query}"] = (403, {}, fault("AccessDenied", "Access Denied"))
    done = house(stub.url).present()
    said(
        done, stub.url, "the key may not "
        "s3:GetBucketPolicy, s3:GetEncryptionConfiguration, s3:GetLifecycleConfiguration",
    )  # fmt: skip
    assert stub.wrote == []


@pytest.mark.parametrize(("query", "action", "done"), [
    ("publicAccessBlock", "s3:PutBucketPublicAccessBlock", []),
    ("encryption", "s3:PutEncryptionConfiguration", ["public_access", "ownership"]),
    (
        "lifecycle", "s3:PutLifecycleConfiguration",
        ["public_access", "ownership", "encryption", "versioning", "transport"],
    ),
])  # fmt: skip
def test_after_a_refused_write_nothing_more_is_written(
    stub: Stub, query: str, action: str, done: list[str]
) -> None:
    stub.answers[f"PUT {query}"] = (403, {}, fault("AccessDenied", "Access Denied"))
    answer = house(stub.url).present()
    said(answer, stub.url, f"access denied (Access Denied): the key may not {action}")
    assert list(answer["changes"]) == done
    assert stub.wrote[-1] == f"PUT {query}"
    told = f"changed before that: {', '.join(done)}" if done else "nothing was changed"
    assert told in answer["comment"]


def test_a_name_that_is_taken(stub: Stub) -> None:
    stub.answers["GET location"] = (404, {}, fault("NoSuchBucket"))
    stub.answers["PUT"] = (409, {}, fault("BucketAlreadyExists"))
    done = house(stub.url).present()
    said(done, stub.url, "the name is taken by somebody else", "nothing was changed")
    assert stub.wrote == ["PUT"]


def test_a_bucket_that_we_have_made_meanwhile_is_as_good(stub: Stub) -> None:
    stub.answers["GET location"] = in_turn((404, {}, fault("NoSuchBucket")), located(REGION))
    stub.answers["PUT"] = (409, {}, fault("BucketAlreadyOwnedByYou"))
    done = house(stub.url).present()
    assert list(done["changes"])[:2] == ["bucket", "public_access"]


def test_a_bucket_that_s3_shows_late_is_waited_for(stub: Stub) -> None:
    gone: Answer = (404, {}, fault("NoSuchBucket"))
    aborted: Answer = (409, {}, fault("OperationAborted", "In progress"))
    stub.answers["GET location"] = in_turn(gone, gone, gone, located(REGION))
    stub.answers["PUT publicAccessBlock"] = in_turn(gone, aborted, (200, {}, ""))
    done = house(stub.url).present()
    assert "tags" not in done["changes"]
    assert len(done["changes"]) == 7
    assert stub.wrote.count("PUT publicAccessBlock") == 3


def test_a_deletion_that_goes_on_is_not_waited_for_for_ever(stub: Stub) -> None:
    stub.answers["PUT versioning"] = (409, {}, fault("OperationAborted", "In progress"))
    said(house(stub.url).present(), stub.url, "still busy", "In progress", "run again in some min")


def test_what_s3_took_and_does_not_show_is_no_success(stub: Stub) -> None:
    done = house(stub.url).present()
    assert done["result"] is False
    assert "does not show it yet: public_access, ownership" in done["comment"]


def test_a_wrong_clock_is_told_with_its_seconds(stub: Stub) -> None:
    more = (
        "<RequestTime>20261128T060000Z</RequestTime>"
        "<ServerTime>2026-11-28T05:00:30Z</ServerTime>"
    )
    stub.answers["GET location"] = (403, {}, fault("RequestTimeTooSkewed", more=more))
    done = house(stub.url).present()
    said(done, stub.url, "the clock of this machine is 3570 s ahead of S3's", "timedatectl")
    server = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    stub.answers["GET location"] = (403, {"Date": server}, fault("RequestTimeTooSkewed"))
    done = house(stub.url).present()
    (off,) = [int(word) for word in done["comment"].split() if word.isdigit() and int(word) > 99]
    assert 7180 < off < 7220
    assert f"{off} s behind S3's" in done["comment"]
    assert stub.wrote == []


def test_what_a_store_does_not_know_is_said_all_at_once(stub: Stub) -> None:
    for query in ("encryption", "lifecycle"):
        stub.answers[f"GET {query}"] = (501, {}, fault("NotImplemented"))
    stub.answers["GET policy"] = (405, {}, fault("MethodNotAllowed"))
    done = house(stub.url).present()
    said(
        done, stub.url, "does not know GetBucketEncryption, GetBucketPolicy, "
        "GetBucketLifecycleConfiguration", "`without: [encryption, transport, lifecycle]`",
    )  # fmt: skip
    assert stub.wrote == []


def test_a_store_that_takes_a_setting_for_a_creation_is_no_success(stub: Stub) -> None:
    """`rclone serve s3` 1.75 does."""
    stub.answers["PUT encryption"] = (409, {}, fault("BucketAlreadyExists"))
    done = house(stub.url).present()
    said(done, stub.url, "does not know PutBucketEncryption", "`without: [encryption]`")
    assert list(done["changes"]) == ["public_access", "ownership"]


def test_a_bucket_with_acls_that_let_others_in(stub: Stub) -> None:
    code = "InvalidBucketAclWithObjectOwnership"
    stub.answers["PUT ownershipControls"] = (400, {}, fault(code))
    said(house(stub.url).present(), stub.url, "its ACL lets others in", "set the ACL to private")


def test_an_account_that_may_have_no_more_buckets(stub: Stub) -> None:
    stub.answers["GET location"] = (404, {}, fault("NoSuchBucket"))
    stub.answers["PUT"] = (400, {}, fault("TooManyBuckets"))
    said(house(stub.url).present(), stub.url, "may have no more buckets", "Service Quotas")


def test_a_page_of_somebody_else_is_no_s3(stub: Stub) -> None:
    for status, page in ((200, "<html><p>Welcome to our hotel"), (502, "Bad gateway"), (503, "")):
        stub.answers["GET location"] = (status, {}, page)
        said(house(stub.url).present(), stub.url, "does not speak S3", "check `endpoint_url`")
    stub.answers["GET location"] = located(REGION)
    stub.answers["GET policy"] = (502, {}, "<html><p>Bad gateway")
    said(house(stub.url).present(), stub.url, "trouble of its own (502", "run again")
    assert stub.wrote == []


def test_throttling_that_ends_is_waited_for(stub: Stub) -> None:
    slow: Answer = (503, {}, fault("SlowDown"))
    stub.answers["GET location"] = in_turn(slow, slow, located(REGION))
    made = house(stub.url)
    made.module.PATIENCE.update(attempts=4)
    done = made.present(test=True)
    assert done["result"] is None, done["comment"]
    assert stub.asked.count("GET location") == 3


def test_throttling_that_does_not_end_is_given_up(stub: Stub) -> None:
    """With the bounds that are in force."""
    stub.answers["GET location"] = (503, {}, fault("SlowDown"))
    with s3_site.measured() as took:
        done = House(stub.url, KEYS).present()
    said(done, stub.url, "no more requests for now (SlowDown), 4 attempts")
    assert stub.asked.count("GET location") == 4
    assert took[0] < 30 + SLACK


def test_without_credentials_it_is_said_where_they_come_from(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in {"HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    done = house(stub.url, keys={}).present()
    said(done, stub.url, "has no AWS credentials", "instance profile", "pillar (`credentials`)")
    assert stub.asked == []
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    done = house(stub.url, keys={}).present()
    assert "credentials cannot be had: The config profile (nobody)" in done["comment"]


def test_without_boto3_it_is_said_how_it_comes(
    stub: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    done = house(stub.url).present()
    assert (done["result"], stub.asked) == (False, [])
    assert "boto3 is not in the Python that Salt runs with" in done["comment"]
    assert "salt-pip install boto3" in done["comment"]


def test_the_role_of_the_machine_is_taken(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The instance's own service that gives out credentials is played by a second stub."""
    expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    role = {
        "Code": "Success", "AccessKeyId": "ASIAROLE", "SecretAccessKey": "s",
        "Token": "of-the-role", "Expiration": expires, "LastUpdated": expires, "Type": "AWS-HMAC",
    }  # fmt: skip
    with s3_site.stub() as instance:
        roles = "GET /latest/meta-data/iam/security-credentials/"
        instance.answers.update({
            "PUT /latest/api/token": (200, {}, "token"), roles: (200, {}, "synapse"),
            f"{roles}synapse": (200, {}, json.dumps(role)),
        })  # fmt: skip
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", instance.url)
        monkeypatch.delenv("AWS_EC2_METADATA_DISABLED", raising=False)
        done = house(stub.url, keys={}).present(test=True)
    assert done["result"] is None, done["comment"]
    assert stub.headers["X-Amz-Security-Token"] == "of-the-role"


def test_keys_of_the_pillar_that_last_for_hours_come_with_their_token(stub: Stub) -> None:
    done = house(stub.url, keys={**KEYS, "session_token": "for-hours"}).present(test=True)
    assert done["result"] is None, done["comment"]
    assert stub.headers["X-Amz-Security-Token"] == "for-hours"


def test_nobody_there(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    said(house(url).present(), url, "no answer", "Could not connect", "firewall and proxy")
    url = "http://no-such-host.invalid:9000"
    said(house(url).present(), url, "no answer", "name resolution")


def test_a_network_that_is_gone_is_known_within_the_bound() -> None:
    """A listener that takes nobody: its queue is full, as packets that are lost would be."""
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for filler in (first, second):
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        time.sleep(0.2)
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        with s3_site.measured() as took:
            done = House(url, KEYS).present()
    said(done, url, "no answer (Connect timeout", "nothing was changed")
    assert 10 < took[0] < 30 + SLACK


def test_a_server_that_says_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}"
        with s3_site.measured() as took:
            said(house(url).present(), url, "no answer (Read timeout")
    # Two attempts of a second, and up to one between them.
    assert took[0] < 3 + SLACK


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Files: an authority, and a certificate for localhost with its key."""
    # It would say so after pytest's own last line.
    logging.getLogger("urllib3.connection").setLevel(logging.CRITICAL)
    folder, now = tmp_path_factory.mktemp("pki"), datetime.now(UTC)
    authority, authority_key = pki.make_authority("tests", now)
    crt, key = pki.issue(authority, authority_key, ["localhost"], now)
    made = (folder / "authority.pem", folder / "crt.pem", folder / "key.pem")
    for path, text in zip(made, (authority, crt, key), strict=True):
        path.write_text(text)
    return made


def test_a_certificate_is_checked(certificate: tuple[Path, Path, Path]) -> None:
    authority, crt, key = certificate
    with s3_site.stub((crt, key)) as secure:
        said(house(secure.url).present(), secure.url, "its certificate is not accepted", "`ca`")
        assert secure.asked == []
        right = house(secure.url, ca=str(authority)).present(test=True)
        assert right["result"] is None, right["comment"]
        other_name = secure.url.replace("localhost", "127.0.0.1")
        done = house(other_name, ca=str(authority)).present()
        said(done, other_name, "its certificate is not accepted", "the name in `endpoint_url`")
        gone = house(secure.url, ca="/no/such/file.pem").present()
        assert "`ca`: there is no file /no/such/file.pem on this machine" in gone["comment"]


def test_pillar_that_is_wrong_asks_nobody(stub: Stub) -> None:
    made = House(stub.url, {"access_key": "only-one"})
    done = made.present(
        name="Lale_Media", region="europe", ca="s3.pem", account=123, prefix="/media",
        tags={"a": 1}, kms_key="alias/media", bucket_key="yes", noncurrent_days=0, upload_days=True,
        without=["everything"],
    )  # fmt: skip
    assert (done["result"], done["changes"], stub.asked) == (False, {}, [])
    for key in ("name", "region", "ca", "account", "prefix", "tags", "kms_key", "bucket_key",
                "noncurrent_days", "upload_days", "without", "credentials"):  # fmt: skip
        assert f"`{key}` must" in done["comment"]
    assert "only-one" not in done["comment"]
