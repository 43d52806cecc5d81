"""What the media's bucket is to be: what is wanted, what of it is missing, what would be written.

Nothing here asks S3. A bucket's settings are cut into aspects (:data:`ASPECTS`). Of each aspect
S3 keeps one document; what it answers about it, as boto3 gives it, is its *answer*, and None when
there is no such document. What is ours in a document is told from what is not: other people's
lifecycle rules, policy statements and tags are carried along as they are.

Terms: https://docs.aws.amazon.com/AmazonS3/latest/API/Welcome.html
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib import parse

__virtualname__ = "s3_bucket_rules"

#: In the order in which they are written: nobody else may look in before anything is in it.
ASPECTS = (
    "public_access", "ownership", "encryption", "versioning", "transport", "lifecycle", "tags",
)  # fmt: skip

#: By these our lifecycle rule and our policy statement are known again.
RULE_ID = "saltworks-media"
STATEMENT_ID = "SaltworksTlsOnly"

#: Region of buckets that S3 names no region for.
#: https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetBucketLocation.html
OLDEST_REGION = "us-east-1"

#: Where AWS has a part of its own: the beginning of a region's name → partition. A test holds it
#: against botocore's own list.
PARTITIONS = {
    "cn-": "aws-cn", "us-gov-": "aws-us-gov", "us-iso-": "aws-iso", "us-isob-": "aws-iso-b",
    "eu-isoe-": "aws-iso-e", "us-isof-": "aws-iso-f", "eusc-": "aws-eusc",
}  # fmt: skip

#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
NAME = re.compile(r"(?!.*\.\.)(?!\d+\.\d+\.\d+\.\d+$)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
REGION = re.compile(r"[a-z]+(-[a-z]+)+-\d+")
KMS_KEY = re.compile(r"arn:(aws[a-z-]*):kms:([a-z0-9-]+):\d{12}:key/[A-Za-z0-9-]+")
#: https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketTagging.html
TAGS, TAG_KEY, TAG_VALUE = 50, 128, 256


def __virtual__() -> str:
    return __virtualname__


def partition(region: str) -> str:
    """The part of AWS that a region is in, as ARNs name it."""
    return next((part for begin, part in PARTITIONS.items() if region.startswith(begin)), "aws")


def arn(name: str, region: str) -> str:
    """A bucket's ARN."""
    return f"arn:{partition(region)}:s3:::{name}"


def location(answer: Mapping[str, Any]) -> str:
    """The region in an answer of GetBucketLocation."""
    said = answer.get("LocationConstraint") or OLDEST_REGION
    return "eu-west-1" if said == "EU" else str(said)


def problems(settings: Mapping[str, Any]) -> list[str]:
    """All that is wrong with the settings by themselves; each with the pillar's key.

    :param settings: as :func:`s3_bucket.present` (state) takes them.
    """
    return [f"`{key}` {what} (it is {settings[key]!r})" for key, what in _wrong(settings)]


def credentials_problems(credentials: Any) -> list[str]:
    """What is wrong with keys in the pillar; their values are not told.

    :param credentials: ``access_key``, ``secret_key``, ``session_token``; none of them: the
        machine's own are taken.
    """
    keys = ("access_key", "secret_key", "session_token")
    if not isinstance(credentials, Mapping) or not set(credentials) <= set(keys):
        return [f"`credentials` must have {', '.join(keys)} and nothing else"]
    access, secret, token = (credentials.get(key) or "" for key in keys)
    if not all(map(_text, (access, secret, token))):
        return ["`credentials` must be texts: keys of digits alone in quotes"]
    if bool(access) != bool(secret) or (token and not access):
        return ["`credentials` must have access_key and secret_key, or neither"]
    return []


def _wrong(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Key of a setting, and what it must be."""
    known = ", ".join(ASPECTS)
    without, region = settings["without"], settings["region"]
    checks: list[tuple[str, bool, str]] = [
        ("name", _text(settings["name"]) and bool(NAME.fullmatch(settings["name"])),
         "must be a bucket's name: 3 to 63 of a-z, 0-9, - and ."),
        ("region", _text(region) and bool(REGION.fullmatch(region)),
         "must be a region, such as eu-central-1"),
        ("endpoint_url", _text(settings["endpoint_url"]) and _url(settings["endpoint_url"]),
         "must be empty for AWS, or http(s)://host:port and no more"),
        ("ca", _text(settings["ca"]) and settings["ca"][:1] in ("", "/"),
         "must be empty, or a file's whole path"),
        ("account", _text(settings["account"])
         and bool(re.fullmatch(r"(\d{12})?", settings["account"])),
         "must be empty, or AWS's 12 digits in quotes"),
        ("prefix", _text(settings["prefix"])
         and bool(re.fullmatch(r"([^/*?]+/)*", settings["prefix"])),
         "must be empty, or end with / and not begin with it, without * and ?"),
        ("kms_key", _text(settings["kms_key"]) and _key_of(settings["kms_key"], region),
         "must be empty, or the key's ARN (arn:…:kms:…:key/…, no alias) in the bucket's region"),
        ("bucket_key", isinstance(settings["bucket_key"], bool), "must be true or false"),
        ("without", isinstance(without, list) and set(map(str, without)) <= set(ASPECTS),
         f"must be a list of some of {known}"),
        ("tags", _tags(settings["tags"]),
         f"must be up to {TAGS} names with texts (numbers in quotes); none begins with aws:"),
    ]  # fmt: skip
    checks += [
        (key, _days(settings[key]), "must be a number of days, 1 or more")
        for key in ("noncurrent_days", "upload_days")
    ]
    wrong = [(key, what) for key, right, what in checks if not right]
    if settings["kms_key"] and isinstance(without, list) and "encryption" in without:
        wrong.append(("kms_key", "is given, and `without` names encryption"))
    return wrong


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _url(value: str) -> bool:
    if not value:
        return True
    try:
        parts = parse.urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return False
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    return parts.scheme in ("http", "https") and bool(host) and plain


def _key_of(value: str, region: Any) -> bool:
    if not value:
        return True
    found = KMS_KEY.fullmatch(value)
    return found is not None and (found[1], found[2]) == (partition(str(region)), region)


def _tags(value: Any) -> bool:
    return isinstance(value, dict) and len(value) <= TAGS and all(
        _text(key) and _text(said) and 0 < len(key) <= TAG_KEY and len(said) <= TAG_VALUE
        and not key.startswith("aws:")
        for key, said in value.items()
    )


def _days(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def aspects(settings: Mapping[str, Any]) -> list[str]:
    """Those that are looked after."""
    left = set(settings["without"]) | (set() if settings["tags"] else {"tags"})
    return [aspect for aspect in ASPECTS if aspect not in left]


def understood(aspect: str, answer: Mapping[str, Any] | None) -> bool:
    """Whether an answer is of S3: a store that does not know a call may list its objects instead.

    ``rclone serve s3`` 1.75 does (facts: docs/m5-s3.md); S3 itself says either what there is, or by
    an error that there is none.
    """
    if answer is None or aspect == "versioning":
        return True
    if aspect == "transport":
        return _policy(answer) is not None
    wanted = {
        "public_access": ("PublicAccessBlockConfiguration", "BlockPublicAcls"),
        "ownership": ("OwnershipControls", "Rules"),
        "encryption": ("ServerSideEncryptionConfiguration", "Rules"),
        "lifecycle": ("Rules",),
        "tags": ("TagSet",),
    }[aspect]
    value: Any = answer
    for key in wanted:
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def changes(
    found: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """What is not as it is wanted: aspect → ``old`` and ``new``; ``bucket`` if there is none.

    Of a document with other people's things in it only what is ours is told.

    :param found: aspect → answer; None when there is no bucket.
    """
    made = {}
    if found is None:
        made["bucket"] = {"old": None, "new": f"{settings['name']} in {settings['region']}"}
    for aspect in aspects(settings):
        old = _ours(aspect, (found or {}).get(aspect), settings)
        new = _wanted(aspect, settings)
        if not _equal(aspect, old, new):
            made[aspect] = {"old": old, "new": new}
    return made


def arguments(
    aspect: str, answer: Mapping[str, Any] | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What is sent to write an aspect: the whole document, with what is other people's in it.

    :param answer: what the store says of it now.
    """
    return _WRITES[aspect](answer or {}, settings)


def refused(found: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> list[str]:
    """Why this bucket cannot be had as it is wanted; nothing is written then."""
    policy = _policy((found or {}).get("transport") or {})
    if "transport" not in changes(found, settings) or policy is None:
        return []
    # With public access blocked S3 takes no policy that gives anything to everybody: it would
    # answer AccessDenied half-way.
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/access-control-block-public-access.html
    return [
        f"statement {statement.get('Sid', '(without Sid)')} of its policy lets everybody in, and "
        "public access is to be blocked: remove that statement"
        for statement in _statements(policy)
        if statement.get("Effect") == "Allow" and _everybody(statement.get("Principal"))
        and not statement.get("Condition") and "public_access" in aspects(settings)
    ]


def warnings(found: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> list[str]:
    """What is left alone, as it is other people's, and will take media away."""
    prefix = settings["prefix"]
    return [
        f"lifecycle rule {rule.get('ID', '(without id)')} is not ours and expires objects that "
        "are in use: media would be gone. It was left alone; see whose it is"
        for rule in ((found or {}).get("lifecycle") or {}).get("Rules", [])
        if rule.get("ID") != RULE_ID and rule.get("Status") == "Enabled"
        and {"Days", "Date"} & set(rule.get("Expiration", {}))
        and (_prefix(rule).startswith(prefix) or prefix.startswith(_prefix(rule)))
    ]


def media_policy(
    name: str, region: str, prefix: str = "", kms_key: str = ""
) -> dict[str, Any]:
    """IAM policy for the key that Synapse has: put and get media, and nothing else.

    It may list, as otherwise S3 answers 403 and not 404 where there is no object
    (https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html), and the provider takes
    only 404 for "not there".

    :param prefix: that the media's keys begin with.
    :param kms_key: ARN of the key that the bucket is encrypted by.
    """
    bucket = arn(name, region)
    listing: dict[str, Any] = {
        "Sid": "ListMedia", "Effect": "Allow", "Action": "s3:ListBucket", "Resource": bucket,
    }
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": f"{prefix}*"}}
    statements = [
        {
            "Sid": "PutAndGetMedia", "Effect": "Allow",
            "Action": ["s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"],
            "Resource": f"{bucket}/{prefix}*",
        },
        listing,
    ]  # fmt: skip
    if kms_key:
        # Decrypt also for parts of an upload.
        # https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
        statements.append({
            "Sid": "UseTheirKey", "Effect": "Allow",
            "Action": ["kms:GenerateDataKey", "kms:Decrypt"], "Resource": kms_key,
        })  # fmt: skip
    return {"Version": "2012-10-17", "Statement": statements}


def _wanted(aspect: str, settings: Mapping[str, Any]) -> Any:
    """What is ours of an aspect, as it is to be."""
    if aspect == "public_access":
        return {
            "BlockPublicAcls": True, "IgnorePublicAcls": True,
            "BlockPublicPolicy": True, "RestrictPublicBuckets": True,
        }  # fmt: skip
    if aspect == "encryption":
        key, bucket_key = settings["kms_key"], settings["bucket_key"]
        if not key:
            return {"algorithm": "AES256"}
        return {"algorithm": "aws:kms", "kms_key": key, "bucket_key": bucket_key}
    if aspect == "transport":
        bucket = arn(settings["name"], settings["region"])
        return {
            "Sid": STATEMENT_ID, "Effect": "Deny", "Principal": "*", "Action": "s3:*",
            "Resource": [bucket, f"{bucket}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }  # fmt: skip
    if aspect == "lifecycle":
        return {
            "ID": RULE_ID, "Status": "Enabled", "Filter": {"Prefix": settings["prefix"]},
            # Of a key of which nothing but the mark of its deletion is left, that goes, too.
            "Expiration": {"ExpiredObjectDeleteMarker": True},
            "NoncurrentVersionExpiration": {"NoncurrentDays": settings["noncurrent_days"]},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": settings["upload_days"]},
        }  # fmt: skip
    plain = {"ownership": "BucketOwnerEnforced", "versioning": "Enabled", "tags": settings["tags"]}
    return plain[aspect]


def _ours(aspect: str, answer: Mapping[str, Any] | None, settings: Mapping[str, Any]) -> Any:
    """What is ours of an aspect, as an answer has it; None when nothing is."""
    if answer is None:
        return None
    if aspect == "public_access":
        return dict(answer["PublicAccessBlockConfiguration"])
    if aspect == "ownership":
        return next((r["ObjectOwnership"] for r in answer["OwnershipControls"]["Rules"]), None)
    if aspect == "encryption":
        return _encryption(answer["ServerSideEncryptionConfiguration"]["Rules"])
    if aspect == "versioning":
        return answer.get("Status")
    if aspect == "transport":
        mine = (s for s in _statements(_policy(answer) or {}) if s.get("Sid") == STATEMENT_ID)
        return next(mine, None)
    if aspect == "lifecycle":
        return next((_rule(r) for r in answer["Rules"] if r.get("ID") == RULE_ID), None)
    there = {row["Key"]: row["Value"] for row in answer["TagSet"]}
    return {key: there[key] for key in settings["tags"] if key in there} or None


def _equal(aspect: str, old: Any, new: Any) -> bool:
    if aspect == "transport" and old is not None:
        return _plain(old) == _plain(new)
    return bool(old == new)


def _encryption(rules: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not rules:
        return None
    default = rules[0].get("ApplyServerSideEncryptionByDefault", {})
    algorithm = default.get("SSEAlgorithm")
    # A bucket key is of KMS alone; S3 may say one for AES256 as well.
    if algorithm == "AES256":
        return {"algorithm": algorithm}
    bucket_key = bool(rules[0].get("BucketKeyEnabled"))
    return {
        "algorithm": algorithm, "kms_key": default.get("KMSMasterKeyID"), "bucket_key": bucket_key,
    }


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    """A lifecycle rule in its present form: the prefix in its filter, also when it is empty."""
    plain = {key: value for key, value in rule.items() if key not in ("Filter", "Prefix")}
    filter_ = rule.get("Filter") or {}
    narrowed = {} if "And" in filter_ or "Tag" in filter_ else {"Prefix": rule.get("Prefix", "")}
    return {**plain, "Filter": {**narrowed, **filter_}}


def _prefix(rule: Mapping[str, Any]) -> str:
    """What keys begin with that a lifecycle rule is about."""
    filter_ = _rule(rule)["Filter"]
    return str(filter_.get("Prefix") or filter_.get("And", {}).get("Prefix") or "")


def _policy(answer: Mapping[str, Any]) -> dict[str, Any] | None:
    """The bucket policy in an answer; None when it is no policy."""
    try:
        policy = json.loads(answer.get("Policy", "{}"))
    except ValueError:
        return None
    return policy if isinstance(policy, dict) else None


def _statements(policy: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A single one may stand without a list.

    https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html
    """
    found = policy.get("Statement", [])
    return [found] if isinstance(found, dict) else list(found)


def _everybody(principal: Any) -> bool:
    if isinstance(principal, Mapping):
        return any(_everybody(who) for who in principal.values())
    return "*" in principal if isinstance(principal, list) else principal == "*"


def _plain(statement: Mapping[str, Any]) -> dict[str, Any]:
    """A statement in one of the forms that mean the same: lists sorted, everybody as ``*``."""
    plain = dict(statement)
    for key in ("Action", "Resource"):
        plain[key] = _listed(plain.get(key))
    if _everybody(plain.get("Principal")):
        plain["Principal"] = "*"
    if isinstance(plain.get("Condition"), Mapping):
        plain["Condition"] = {
            kind: {key.lower(): [v.lower() for v in _listed(said)] for key, said in rows.items()}
            for kind, rows in plain["Condition"].items()
        }
    return plain


def _listed(value: Any) -> list[str]:
    return sorted(map(str, value)) if isinstance(value, list) else [str(value)]


def _write_encryption(answer: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    wanted = _wanted("encryption", settings)
    default = {"SSEAlgorithm": wanted["algorithm"]}
    rules = answer.get("ServerSideEncryptionConfiguration", {}).get("Rules", [{}])
    # What else stands there (which kinds of encryption are refused) stays.
    rule = {key: value for key, value in rules[0].items() if key != "BucketKeyEnabled"}
    if "kms_key" in wanted:
        default["KMSMasterKeyID"] = wanted["kms_key"]
        rule["BucketKeyEnabled"] = wanted["bucket_key"]
    rule["ApplyServerSideEncryptionByDefault"] = default
    return {"ServerSideEncryptionConfiguration": {"Rules": [rule]}}


def _write_transport(answer: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    # Other people's statements are read by their policy's version; that stays.
    policy = {"Version": "2012-10-17", **(_policy(answer) or {})}
    others = [row for row in _statements(policy) if row.get("Sid") != STATEMENT_ID]
    policy["Statement"] = [*others, _wanted("transport", settings)]
    return {"Policy": json.dumps(policy)}


def _write_lifecycle(answer: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    others = [rule for rule in answer.get("Rules", []) if rule.get("ID") != RULE_ID]
    sent: dict[str, Any] = {
        "LifecycleConfiguration": {"Rules": [*others, _wanted("lifecycle", settings)]}
    }
    # Beside the rules, and about other people's; not sent it goes back to what AWS begins with.
    # https://docs.aws.amazon.com/AmazonS3/latest/API/API_PutBucketLifecycleConfiguration.html
    if size := answer.get("TransitionDefaultMinimumObjectSize"):
        sent["TransitionDefaultMinimumObjectSize"] = size
    return sent


def _write_tags(answer: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    there = {row["Key"]: row["Value"] for row in answer.get("TagSet", [])}
    rows = {**there, **settings["tags"]}.items()
    return {"Tagging": {"TagSet": [{"Key": key, "Value": value} for key, value in rows]}}


_WRITES: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]]] = {
    "public_access": lambda _, settings: {
        "PublicAccessBlockConfiguration": _wanted("public_access", settings)
    },
    "ownership": lambda _, settings: {
        "OwnershipControls": {"Rules": [{"ObjectOwnership": _wanted("ownership", settings)}]}
    },
    "encryption": _write_encryption,
    "versioning": lambda _, settings: {
        "VersioningConfiguration": {"Status": _wanted("versioning", settings)}
    },
    "transport": _write_transport,
    "lifecycle": _write_lifecycle,
    "tags": _write_tags,
}
