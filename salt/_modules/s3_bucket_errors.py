"""What went wrong with S3, and what to do about it, in words.

Codes: https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime as _parsed
from typing import Any

__virtualname__ = "s3_bucket_errors"

#: Operation → the IAM action that it takes.
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html
ACTIONS = {
    "GetBucketLocation": "s3:GetBucketLocation",
    "ListBuckets": "s3:ListAllMyBuckets",
    "CreateBucket": "s3:CreateBucket",
    "GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "GetBucketOwnershipControls": "s3:GetBucketOwnershipControls",
    "PutBucketOwnershipControls": "s3:PutBucketOwnershipControls",
    "GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "GetBucketVersioning": "s3:GetBucketVersioning",
    "PutBucketVersioning": "s3:PutBucketVersioning",
    "GetBucketPolicy": "s3:GetBucketPolicy",
    "PutBucketPolicy": "s3:PutBucketPolicy",
    "GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "GetBucketTagging": "s3:GetBucketTagging",
    "PutBucketTagging": "s3:PutBucketTagging",
}

#: What a code of S3's, or a class of boto3's, is about.
KINDS = {
    "no-credentials": ("NoCredentialsError",),
    "broken-credentials": (
        "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError", "SSOError",
        "ProfileNotFound", "ConfigParseError", "ConfigNotFound", "UnauthorizedSSOTokenError",
        "MetadataRetrievalError", "InvalidIMDSEndpointError", "LoginError", "InvalidConfigError",
        "InfiniteLoopConfigError", "UnknownCredentialError", "NoAuthTokenError",
        "RefreshWithMFAUnsupportedError", "MissingDependencyException",
    ),
    "expired": ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"),
    "wrong-key": (
        "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId",
        "UnrecognizedClientException", "InvalidSecurity", "NotSignedUp",
    ),
    "denied": ("AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403"),
    "region": (
        "PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException",
        "InvalidLocationConstraint", "InvalidRegionName", "TemporaryRedirect", "301", "307",
    ),
    "taken": ("BucketAlreadyExists",),
    "busy": ("OperationAborted",),
    "too-many": ("TooManyBuckets",),
    "acl": ("InvalidBucketAclWithObjectOwnership",),
    "throttled": (
        "SlowDown", "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
        "RequestLimitExceeded", "TooManyRequests", "TooManyRequestsException", "429",
    ),
    "clock": ("RequestTimeTooSkewed", "RequestExpired", "RequestInTheFuture"),
    "unknown": ("NotImplemented", "MethodNotAllowed", "501", "405"),
    "tls": ("SSLError",),
    "no-s3": ("ResponseParserError", "ParseError"),
    "network": (
        "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionError",
        "ConnectionClosedError", "ProxyConnectionError", "HTTPClientError",
    ),
}  # fmt: skip


def __virtual__() -> str:
    return __virtualname__


def kind(fault: Mapping[str, Any]) -> str:
    """What a fault is about: a key of :data:`KINDS`, ``server`` or ``other``.

    :param fault: ``names``: S3's code, else boto3's class and those it is made of, the nearest
        first; ``status``: of HTTP, 0 without an answer.
    """
    by_name = {name: about for about, names in KINDS.items() for name in names}
    found = next((by_name[name] for name in fault["names"] if name in by_name), None)
    if found is None:
        found = "server" if fault["status"] >= 500 else "other"
    return found


def explain(fault: Mapping[str, Any]) -> str:
    """One sentence: the bucket, the endpoint, what is wrong, what to do.

    :param fault: as for :func:`kind`, and ``bucket``, ``endpoint``, ``region``, ``operation``,
        ``aspect`` (empty if it is about the bucket itself), ``message``, ``attempts``, ``seconds``,
        ``found`` (all that S3 said), ``date`` (the answer's header), ``now`` (UTC, here).
    """
    words = _WORDS[kind(fault)]
    told = {
        **fault, "action": ACTIONS.get(fault["operation"], fault["operation"]),
        "code": fault["names"][0], "message": fault["message"].rstrip(". "),
        "elsewhere": _elsewhere(fault), "instead": _instead([fault["aspect"]]),
        "off": _off(fault), "seconds": f"{fault['seconds']:.0f}",
    }  # fmt: skip
    return _at(fault) + words.format(**told)


def unknown(bucket: str, endpoint: str, aspects: list[str], operations: list[str]) -> str:
    """The sentence about a store that is not AWS's and does not know these aspects."""
    fault = {"bucket": bucket, "endpoint": endpoint}
    return _at(fault) + (
        f"the store does not know {', '.join(operations)}: it cannot do {', '.join(aspects)}; take "
        f"AWS S3{_instead(aspects)}"
    )


def denied(bucket: str, endpoint: str, operations: list[str]) -> str:
    """The sentence about operations that the key may not do."""
    actions = ", ".join(sorted(ACTIONS.get(name, name) for name in operations))
    fault = {"bucket": bucket, "endpoint": endpoint}
    said = f"access denied: the key may not {actions}; allow that in the key's IAM policy"
    return _at(fault) + said


def _at(fault: Mapping[str, Any]) -> str:
    return f"bucket {fault['bucket']} at {fault['endpoint']}: "


def _instead(aspects: list[str]) -> str:
    """What can be done without, if it is an aspect at all."""
    named = ", ".join(filter(None, aspects))
    return f", or say that you do without: `without: [{named}]`" if named else ""


def _elsewhere(fault: Mapping[str, Any]) -> str:
    """Where S3 says that the bucket is, if it does."""
    said = fault["found"].get("Region") or fault["found"].get("Endpoint")
    return f" (S3 names {said})" if said else ""


def _off(fault: Mapping[str, Any]) -> str:
    """By how much this machine's clock is wrong: what S3 said, else by the answer's date."""
    found = fault["found"]
    server, ours = _time(found.get("ServerTime")), _time(found.get("RequestTime"))
    server, ours = server or _time(fault["date"]), ours or fault["now"]
    if server is None:
        return "wrong"
    seconds = round((ours - server).total_seconds())
    return f"{abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} S3's"


def _time(text: str | None) -> datetime | None:
    """A time as S3 writes them: ISO, ISO without separators, or HTTP's."""
    if not text:
        return None
    readings = (
        datetime.fromisoformat,
        lambda said: datetime.strptime(said, "%Y%m%dT%H%M%SZ"),
        _parsed,
    )
    for read in readings:
        try:
            time = read(text)
        except ValueError:
            continue
        return time if time.tzinfo else time.replace(tzinfo=UTC)
    return None


_WORDS = {
    "no-credentials": (
        "this machine has no AWS credentials; give it a role (instance profile) that may do what "
        "formulas/bucket/README.md lists, or put keys into the pillar (`credentials`)"
    ),
    "broken-credentials": (
        "credentials cannot be had: {message}; mend what it names on this machine, or put keys "
        "into the pillar (`credentials`)"
    ),
    "expired": (
        "the credentials have expired ({code}); renew them, or use a role or keys that do not "
        "expire"
    ),
    "wrong-key": (
        "the key is not accepted ({code}: {message}); compare `credentials` in the pillar with "
        "those in IAM: deleted, switched off, or a letter is missing"
    ),
    "denied": (
        "access denied ({message}): the key may not {action}, or the bucket is somebody else's; "
        "allow it in the key's IAM policy, or choose another name"
    ),
    "region": (
        "it is not in {region}{elsewhere} ({code}); correct `region`, or take another name: a "
        "bucket cannot move"
    ),
    "taken": (
        "the name is taken by somebody else, names are of all the world; choose another `name`"
    ),
    "busy": (
        "S3 is still busy with another change of it, such as its deletion ({message}); run again "
        "in some minutes, after a deletion in an hour"
    ),
    "too-many": (
        "the account may have no more buckets ({message}); ask AWS for more (Service Quotas), or "
        "delete one that nobody needs"
    ),
    "acl": (
        "its ACL lets others in, and ACLs are to be switched off; see what they need, give it in "
        "the bucket policy, set the ACL to private, run again"
    ),
    "throttled": (
        "S3 takes no more requests for now ({code}), {attempts} attempts in {seconds} s; run again "
        "in some minutes, and see who else asks with this account"
    ),
    "clock": (
        "the clock of this machine is {off} ({code}); set it (timedatectl, an NTP service) and run "
        "again"
    ),
    "unknown": "the store does not know {operation} ({code}); take AWS S3{instead}",
    "tls": (
        "its certificate is not accepted ({message}); check the name in `endpoint_url`, and `ca`: "
        "the authority that signed it"
    ),
    "no-s3": (
        "what answers there does not speak S3 ({message}), or not now; check `endpoint_url` and "
        "proxies, and run again in some minutes"
    ),
    "network": (
        "no answer ({message}), {seconds} s; check `endpoint_url` and `region`, name resolution, "
        "firewall and proxy of this machine"
    ),
    "server": (
        "S3 has trouble of its own ({status} {code}: {message}), {attempts} attempts in {seconds} "
        "s; run again in some minutes, and see its status page"
    ),
    "other": "{operation} failed ({code}: {message})",
}
