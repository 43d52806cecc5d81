"""State: the media's bucket is there, and as it is to be."""

from __future__ import annotations

from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "s3_bucket"

__salt__: dict[str, Any]
__opts__: dict[str, Any]


def __virtual__() -> str:
    return __virtualname__


def present(
    name: str,
    region: str,
    endpoint_url: str = "",
    ca: str = "",
    account: str = "",
    prefix: str = "",
    kms_key: str = "",
    bucket_key: bool = True,
    noncurrent_days: int = 30,
    upload_days: int = 7,
    tags: dict[str, str] | None = None,
    without: list[str] | None = None,
    credentials_pillar: str = "bucket:credentials",
    unknown: list[str] | None = None,
) -> dict[str, Any]:
    """The bucket ``name`` is there: private, encrypted, versioned, tidied up, by TLS alone.

    What is other people's in it (lifecycle rules, policy statements, tags) stays. No bucket and no
    object is ever deleted.

    :param endpoint_url: of a store that is not AWS's.
    :param ca: file of the authority behind it.
    :param account: AWS's number of who is to own the bucket; without it, whoever has the key.
    :param prefix: what the media's keys begin with; the lifecycle rule is about these alone.
    :param kms_key: ARN of the key to encrypt by; without it by S3's own (SSE-S3).
    :param bucket_key: ask KMS once for many objects.
    :param noncurrent_days: how long an object is kept that was overwritten or deleted.
    :param upload_days: how long an unfinished upload is kept.
    :param without: aspects that the store cannot do (``s3_bucket_rules.ASPECTS``).
    :param credentials_pillar: pillar key of ``access_key`` and ``secret_key``; both empty: those of
        the machine.
    :param unknown: keys in the pillar that mean nothing, and are refused: a setting that was meant
        would be missing.
    """
    settings = {
        "name": name, "region": region, "endpoint_url": endpoint_url, "ca": ca,
        "account": account, "prefix": prefix, "kms_key": kms_key, "bucket_key": bucket_key,
        "noncurrent_days": noncurrent_days, "upload_days": upload_days,
        "tags": {} if tags is None else tags, "without": [] if without is None else without,
    }  # fmt: skip
    credentials = __salt__["pillar.get"](credentials_pillar, {}, unmask=True)
    wrong = __salt__["s3_bucket_rules.problems"](settings)
    wrong += __salt__["s3_bucket_rules.credentials_problems"](credentials)
    wrong += [f"`{key}` is no key of it; see the formula's pillar.example" for key in unknown or []]
    if wrong:
        place = credentials_pillar.rpartition(":")[0]
        return _ret(name, False, {}, [f"pillar {place}, nothing was asked of S3:", *wrong])
    connection = {
        key: settings[key] for key in ("region", "endpoint_url", "ca", "account")
    } | {"credentials": credentials}
    return _converged(settings, connection)


def _converged(settings: dict[str, Any], connection: dict[str, Any]) -> dict[str, Any]:
    name, test = settings["name"], __opts__["test"]
    said = _without(settings)
    aspects = __salt__["s3_bucket_rules.aspects"](settings)
    done: dict[str, Any] = {}
    try:
        found = __salt__["s3_bucket.found"](name, aspects, connection)
        refused = __salt__["s3_bucket_rules.refused"](found, settings)
        if refused:
            return _ret(name, False, {}, [f"bucket {name}, nothing was changed:", *refused])
        changes = __salt__["s3_bucket_rules.changes"](found, settings)
        warnings = __salt__["s3_bucket_rules.warnings"](found, settings)
        if test or not changes:
            words = f"would change: {', '.join(changes)}" if changes else "it is as it is to be"
            result = None if changes else True
            return _ret(name, result, changes, [f"bucket {name}: {words}", *said], warnings)
        if found is None:
            __salt__["s3_bucket.create"](name, connection)
            done["bucket"] = changes["bucket"]
            # What the store does not know it says at once, before anything else is set.
            found = __salt__["s3_bucket.found"](name, aspects, connection) or {}
        for aspect in aspects:
            if aspect in changes:
                sent = __salt__["s3_bucket_rules.arguments"](aspect, found.get(aspect), settings)
                __salt__["s3_bucket.write"](name, aspect, sent, connection)
                done[aspect] = changes[aspect]
        left = __salt__["s3_bucket.unsettled"](settings, connection)
    except CommandExecutionError as problem:
        so_far = f"changed before that: {', '.join(done)}" if done else "nothing was changed"
        return _ret(name, False, done, [str(problem), so_far, *said])
    if left:
        words = (
            f"bucket {name}: it was written, and S3 does not show it yet: {', '.join(left)}; run "
            "again in some minutes. If it stays so, somebody else writes it, too"
        )
        return _ret(name, False, done, [words, *said], warnings)
    return _ret(name, True, done, [f"bucket {name}: {', '.join(done)} written", *said], warnings)


def _without(settings: dict[str, Any]) -> list[str]:
    """What is not done, as it is said."""
    left = ", ".join(settings["without"])
    return [f"not looked after, as `without` says: {left}"] if left else []


def _ret(
    name: str,
    result: bool | None,
    changes: dict[str, Any],
    comment: list[str],
    warnings: list[str] | None = None,
) -> dict[str, Any]:
    told = {"warnings": warnings} if warnings else {}
    return {
        "name": name, "result": result, "changes": changes, "comment": "\n".join(comment), **told,
    }  # fmt: skip
