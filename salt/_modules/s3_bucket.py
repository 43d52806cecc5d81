"""AWS S3's side of the media's bucket: what it says of it, and what is written.

What is wanted is decided in ``s3_bucket_rules``, what an error means in ``s3_bucket_errors``. No
function here deletes a bucket, or an object, or asks what is in one.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from xml.etree import ElementTree

from salt.exceptions import CommandExecutionError

__virtualname__ = "s3_bucket"

__salt__: dict[str, Any]

#: aspect → the noun of its calls, and S3's code for "there is none".
CALLS = {
    "public_access": ("public_access_block", "NoSuchPublicAccessBlockConfiguration"),
    "ownership": ("bucket_ownership_controls", "OwnershipControlsNotFoundError"),
    "encryption": ("bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError"),
    "versioning": ("bucket_versioning", ""),
    "transport": ("bucket_policy", "NoSuchBucketPolicy"),
    "lifecycle": ("bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration"),
    "tags": ("bucket_tagging", "NoSuchTagSet"),
}

#: Seconds and attempts of one call. A network that is gone is known within 4 * 4 s, a server that
#: takes connections and says nothing within 4 * 6 s; between attempts boto3 waits for up to
#: 1 + 2 + 4 s. https://docs.aws.amazon.com/boto3/latest/guide/retries.html
PATIENCE = {"connect": 4, "read": 6, "attempts": 4}

#: What S3 says of a bucket that it has not made, or changed, everywhere yet; and for how long that
#: is waited for, in seconds. https://docs.aws.amazon.com/AmazonS3/latest/userguide/Welcome.html
#: (S3 data consistency model)
UNSETTLED = ("NoSuchBucket", "OperationAborted")
SETTLE_SECONDS = 20
LOOK_SECONDS = 1

Connection = Mapping[str, Any]


def __virtual__() -> str:
    return __virtualname__


def found(name: str, aspects: Sequence[str], connection: Connection) -> dict[str, Any] | None:
    """What S3 says of a bucket: aspect → answer, None where there is none.

    :param aspects: of ``s3_bucket_rules``.
    :param connection: ``region``; ``endpoint_url``, ``ca`` (file of the authority behind it) and
        ``account`` (AWS's number of who is to own the bucket), empty for what is usual;
        ``credentials``: ``access_key``, ``secret_key``, ``session_token``, empty for the machine's
        own, by boto3's chain.
    :returns: None when there is no such bucket.
    :raises CommandExecutionError: the bucket is somebody else's, or elsewhere, or S3 does not say;
        with what to do.
    """
    store = _Store(name, connection)
    answer = _located(store)
    if answer is None:
        return None
    region = __salt__["s3_bucket_rules.location"](answer)
    if region != connection["region"]:
        raise CommandExecutionError(
            f"bucket {name} at {store.endpoint}: it is in {region}, not in {connection['region']}; "
            "correct `region`, or take another name: a bucket cannot move"
        )
    return _answers(store, aspects)


def create(name: str, connection: Connection) -> None:
    """Make a bucket, with nothing set.

    :param connection: as for :func:`found`.
    :raises CommandExecutionError: the name is taken, the credentials are another account's, or S3
        does not do it; with what to do.
    """
    store = _Store(name, connection)
    _right_account(store)
    more: dict[str, Any] = {}
    # The oldest region is the one that S3 does not take by its name.
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html
    if connection["region"] != "us-east-1":
        more["CreateBucketConfiguration"] = {"LocationConstraint": connection["region"]}
    # Made between two looks, by ourselves: as good as made now.
    if store.call("create_bucket", absent="BucketAlreadyOwnedByYou", owned=False, **more) is None:
        return
    begun = time.monotonic()
    while not _shown(store):
        if time.monotonic() - begun > SETTLE_SECONDS:
            raise CommandExecutionError(
                f"bucket {name} at {store.endpoint}: it was made, and S3 does not show it after "
                f"{SETTLE_SECONDS} s; run again in some minutes"
            )
        time.sleep(LOOK_SECONDS)


def write(name: str, aspect: str, arguments: Mapping[str, Any], connection: Connection) -> None:
    """Write one aspect of a bucket.

    :param arguments: of ``s3_bucket_rules.arguments``.
    :param connection: as for :func:`found`.
    :raises CommandExecutionError: S3 does not take it; with what to do.
    """
    store = _Store(name, connection)
    begun = time.monotonic()
    while True:
        try:
            store.call(f"put_{CALLS[aspect][0]}", aspect=aspect, **arguments)
        except _Refused as refused:
            # A store without the call takes it for the bucket's creation.
            if refused.code in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
                words = __salt__["s3_bucket_errors.unknown"](
                    name, store.endpoint, [aspect], [refused.operation]
                )
                raise CommandExecutionError(words) from refused
            if refused.code in UNSETTLED and time.monotonic() - begun < SETTLE_SECONDS:
                time.sleep(LOOK_SECONDS)
                continue
            raise CommandExecutionError(str(refused)) from refused
        return


def unsettled(settings: Mapping[str, Any], connection: Connection) -> dict[str, Any]:
    """Wait until S3 shows what was written.

    :param settings: as for ``s3_bucket_rules``.
    :param connection: as for :func:`found`.
    :returns: what it does not show after :data:`SETTLE_SECONDS`, as ``s3_bucket_rules.changes``.
    :raises CommandExecutionError: as :func:`found`.
    """
    begun = time.monotonic()
    while True:
        aspects = __salt__["s3_bucket_rules.aspects"](settings)
        answers = found(settings["name"], aspects, connection)
        left: dict[str, Any] = __salt__["s3_bucket_rules.changes"](answers, settings)
        if not left or time.monotonic() - begun > SETTLE_SECONDS:
            return left
        time.sleep(LOOK_SECONDS)


def media_policy(name: str, region: str, prefix: str = "", kms_key: str = "") -> str:
    """The IAM policy, JSON, for the key that Synapse has; see ``s3_bucket_rules.media_policy``.

    CLI Example:

    .. code-block:: bash

        salt-call s3_bucket.media_policy lale-media eu-central-1
    """
    policy = __salt__["s3_bucket_rules.media_policy"](name, region, prefix, kms_key)
    return json.dumps(policy, indent=2)


class _Refused(CommandExecutionError):  # type: ignore[misc]
    """S3 said no; the text says what to do."""

    def __init__(self, words: str, code: str, kind: str, operation: str) -> None:
        super().__init__(words)
        self.code, self.kind, self.operation = code, kind, operation


class _Store:
    """S3, asked about one bucket.

    :raises CommandExecutionError: boto3 is not there, or cannot begin.
    """

    def __init__(self, name: str, connection: Connection) -> None:
        self.name, self.connection = name, connection
        self.client = self.service("s3", connection["endpoint_url"])
        self.endpoint = str(self.client.meta.endpoint_url)

    def service(self, service: str, endpoint_url: str) -> Any:
        """A client of one of AWS's services."""
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError as error:
            raise CommandExecutionError(
                "boto3 is not in the Python that Salt runs with on this machine; salt-pip install "
                "boto3, and restart salt-minion"
            ) from error
        ca, keys = self.connection["ca"], self.connection["credentials"]
        if ca and not os.path.isfile(ca):
            raise CommandExecutionError(f"`ca`: there is no file {ca} on this machine")
        config = Config(
            connect_timeout=PATIENCE["connect"],
            read_timeout=PATIENCE["read"],
            retries={"mode": "adaptive", "total_max_attempts": PATIENCE["attempts"]},
        )
        try:
            return boto3.Session().client(
                service,
                region_name=self.connection["region"],
                endpoint_url=endpoint_url or None,
                verify=ca or None,
                aws_access_key_id=keys.get("access_key") or None,
                aws_secret_access_key=keys.get("secret_key") or None,
                aws_session_token=keys.get("session_token") or None,
                config=config,
            )
        except BotoCoreError as error:
            self.endpoint = endpoint_url or "AWS"
            raise self._told(error, "", "", 0) from error

    def call(
        self, method: str, aspect: str = "", absent: str = "", owned: bool = True, **arguments: Any
    ) -> dict[str, Any] | None:
        """Ask S3 one thing about the bucket.

        :param absent: S3's code for "there is none".
        :param owned: also that the bucket is of the account that it is to be of.
        :returns: its answer; None for ``absent``.
        :raises CommandExecutionError: with what to do (:class:`_Refused`).
        """
        if owned and self.connection["account"]:
            arguments["ExpectedBucketOwner"] = self.connection["account"]
        with self.saying(method, aspect, absent) as said:
            said.update(getattr(self.client, method)(Bucket=self.name, **arguments))
        said.pop("ResponseMetadata", None)
        return said if not said.pop("_absent", False) else None

    @contextlib.contextmanager
    def saying(self, method: str, aspect: str = "", absent: str = "") -> Iterator[dict[str, Any]]:
        """What goes wrong within is told in words; `_absent` is in the yielded for ``absent``."""
        from botocore.exceptions import BotoCoreError, ClientError

        # boto3 reads the answer of GetBucketLocation by itself, and lets that out as it is.
        wrong = (BotoCoreError, ElementTree.ParseError, OSError, ValueError)
        said: dict[str, Any] = {}
        begun = time.monotonic()
        operation = self.client.meta.method_to_api_mapping.get(method, method)
        try:
            yield said
        except ClientError as error:
            if absent and error.response["Error"].get("Code") == absent:
                said["_absent"] = True
                return
            raise self._told(error, operation, aspect, time.monotonic() - begun) from error
        except wrong as error:
            raise self._told(error, operation, aspect, time.monotonic() - begun) from error

    def _told(self, error: Exception, operation: str, aspect: str, seconds: float) -> _Refused:
        response = getattr(error, "response", None)
        # Some errors of boto3's carry requests' response: that has none of this.
        response = response if isinstance(response, dict) else {}
        body, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
        classes = [made_of.__name__ for made_of in type(error).__mro__]
        fault = {
            "bucket": self.name,
            "endpoint": self.endpoint,
            "region": self.connection["region"],
            "operation": operation,
            "aspect": aspect,
            "names": [body["Code"]] if body.get("Code") else classes,
            "status": int(meta.get("HTTPStatusCode", 0)),
            "message": str(body.get("Message") or error),
            "attempts": int(meta.get("RetryAttempts", 0)) + 1,
            "seconds": seconds,
            "found": body,
            "date": meta.get("HTTPHeaders", {}).get("date", ""),
            "now": datetime.now(UTC),
        }
        words, kind = (__salt__[f"s3_bucket_errors.{name}"](fault) for name in ("explain", "kind"))
        return _Refused(words, fault["names"][0], kind, operation)


def _located(store: _Store) -> dict[str, Any] | None:
    """S3's answer about where a bucket is; None when there is none.

    The first question, as it is the only one about a bucket whose refusal comes with a reason:
    HEAD's has no body.

    :raises CommandExecutionError: the bucket is somebody else's, or S3 does not say.
    """
    try:
        answer = store.call("get_bucket_location", absent="NoSuchBucket")
    except _Refused as refused:
        unsaid = refused.kind == "denied" and not store.connection["account"]
        if unsaid and not _listed(store, [refused.operation]):
            raise CommandExecutionError(_not_ours(store)) from refused
        raise
    # Without an account's number S3 lets us ask about a bucket of somebody who allows it.
    if answer is not None and not store.connection["account"] and not _listed(store):
        raise CommandExecutionError(_not_ours(store))
    return answer


def _shown(store: _Store) -> bool:
    """Whether S3 knows a bucket that was just made, by all that :func:`_located` asks."""
    if store.call("get_bucket_location", absent="NoSuchBucket") is None:
        return False
    return bool(store.connection["account"]) or _listed(store)


def _listed(store: _Store, denied: Sequence[str] = ()) -> bool:
    """Whether the bucket is among those of the key's own account.

    :param denied: operations that were denied before this.
    """
    try:
        with store.saying("list_buckets"):
            answer = store.client.list_buckets(Prefix=store.name)
    except _Refused as refused:
        if refused.kind != "denied":
            raise
        operations = [*denied, refused.operation]
        words = __salt__["s3_bucket_errors.denied"](store.name, store.endpoint, operations)
        raise CommandExecutionError(
            f"{words}; or give `account` in the pillar: then S3 says whose the bucket is, and the "
            "list of buckets is not asked for"
        ) from refused
    return store.name in [row["Name"] for row in answer.get("Buckets", [])]


def _not_ours(store: _Store) -> str:
    return (
        f"bucket {store.name} at {store.endpoint}: it is there, and it is somebody else's: it is "
        "not among the buckets of this key's account; choose another `name`, or take keys of its "
        "account"
    )


def _right_account(store: _Store) -> None:
    """The credentials are of the account that is to own the bucket."""
    wanted = store.connection["account"]
    if not wanted:
        return
    identity = store.service("sts", "")
    with store.saying("get_caller_identity"):
        account = identity.get_caller_identity()["Account"]
    if account != wanted:
        raise CommandExecutionError(
            f"bucket {store.name} at {store.endpoint}: the credentials are of account {account}, "
            f"`account` says {wanted}; correct one of them"
        )


def _answers(store: _Store, aspects: Sequence[str]) -> dict[str, Any]:
    """What S3 says of each aspect.

    :raises CommandExecutionError: naming all that the key may not read, and all that the store
        does not know.
    """
    answers: dict[str, Any] = {}
    denied, unknown = [], {}
    for aspect in aspects:
        noun, absent = CALLS[aspect]
        operation = store.client.meta.method_to_api_mapping[f"get_{noun}"]
        try:
            answers[aspect] = store.call(f"get_{noun}", aspect=aspect, absent=absent)
        except _Refused as refused:
            if refused.kind == "denied":
                denied.append(operation)
            elif refused.kind == "unknown":
                unknown[aspect] = operation
            else:
                raise
        else:
            if not __salt__["s3_bucket_rules.understood"](aspect, answers[aspect]):
                unknown[aspect] = operation
    words = []
    if denied:
        words.append(__salt__["s3_bucket_errors.denied"](store.name, store.endpoint, denied))
    if unknown:
        told = (list(unknown), list(unknown.values()))
        words.append(__salt__["s3_bucket_errors.unknown"](store.name, store.endpoint, *told))
    if words:
        raise CommandExecutionError("\n".join(words))
    return answers
