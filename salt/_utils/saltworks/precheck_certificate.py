"""The part of a precheck that is about the public certificate.

Pure, and no key comes here: that it belongs to the certificate is a yes or no of the vault.
"""

from __future__ import annotations

from collections.abc import Iterable

from cryptography import x509

from . import precheck_facts as shared
from .precheck_facts import Facts, Survey

PLACE = "pillar/secrets.sls: tls_certificate"

#: Sooner than this it must not expire, in days.
DAYS = 14

DAY_SECONDS = 86400

NEW = "salt-run secret.put tls_certificate <file>; after M1: salt <id> state.apply nginx.loaded"
NEW_BOTH = f"salt-run secret.put tls_key <file>, then {NEW}"


def check(made: Survey, facts: Facts, *, done: bool) -> None:
    """Check the certificate, if there is one; that it is missing is the map's problem.

    :param done: the milestone is achieved: an end that is near is worth a note only.
    """
    given = facts.certificate
    if given is None:
        return
    leaf = _leaf(given["pem"])
    if not made.must(
        leaf is not None,
        PLACE,
        "is no certificate in PEM, or cannot be read",
        f"put the whole chain, the site's own certificate first: {NEW}",
    ):
        return
    assert leaf is not None
    made.must(
        bool(given["key_fits"]),
        PLACE,
        "tls_key is not the key of its first certificate, or cannot be read without a passphrase",
        NEW_BOTH,
    )
    name = shared.text(facts.cmap, "public", "name")
    names = _names(leaf)
    made.must(
        name is None or covers(names, name),
        PLACE,
        f"is for {', '.join(names) or 'no name'}, not for {name}",
        f"get one with {name} among its subject alternative names: {NEW_BOTH}",
    )
    _times(made, leaf, facts.now, done)


def covers(names: Iterable[str], name: str) -> bool:
    """Whether a certificate for some names is good for one.

    :param names: its DNS names; ``*.example.org`` stands for one label (RFC 6125, 6.4.3).
    """
    wanted = name.lower().rstrip(".")
    wild = f"*.{wanted.partition('.')[2]}"
    return any(one.lower().rstrip(".") in (wanted, wild) for one in names)


def _leaf(pem: str) -> x509.Certificate | None:
    try:
        return x509.load_pem_x509_certificates(pem.encode())[0]
    except ValueError:
        return None


def _names(leaf: x509.Certificate) -> list[str]:
    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        # Clients look at nothing else; the subject's common name does not count.
        return []
    return list(found.value.get_values_for_type(x509.DNSName))


def _times(made: Survey, leaf: x509.Certificate, now: float, done: bool) -> None:
    begins, ends = leaf.not_valid_before_utc, leaf.not_valid_after_utc
    made.must(
        begins.timestamp() <= now,
        PLACE,
        f"is not valid before {begins:%Y-%m-%d %H:%M} UTC",
        f"wait until then, see that the master's clock is right, or put another one: {NEW_BOTH}",
    )
    left = ends.timestamp() - now
    if left <= 0:
        made.must(False, PLACE, f"expired on {ends:%Y-%m-%d %H:%M} UTC", f"renew it: {NEW_BOTH}")
        return
    soon = left <= DAYS * DAY_SECONDS
    words = f"expires in {left / DAY_SECONDS:.0f} days, on {ends:%Y-%m-%d %H:%M} UTC"
    if soon and done:
        made.notes.append(f"the public certificate {words}: renew it")
        return
    made.must(not soon, PLACE, words, f"renew it first: {NEW_BOTH}")
