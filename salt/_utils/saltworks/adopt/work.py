"""The state of one adoption while it is being judged."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import Problem
from .model import Kind, Verdict, dotted
from .reading import Path, Reading

ACCEPT = "give it up: list it under legacy.accepted_losses of the cluster map"

#: Names under which pip knows what Python imports under another.
_DISTRIBUTIONS = {
    "matrix_synapse_ldap3": "ldap_auth_provider",
    "synapse_s3_storage_provider": "s3_storage_provider",
    "matrix_synapse_rest_auth": "rest_auth_provider",
    "matrix_synapse_rest_password_provider": "rest_auth_provider",
    "matrix_synapse_shared_secret_auth": "shared_secret_authenticator",
    "synapse_simple_antispam": "synapse_simple_antispam",
    "matrix_synapse_mjolnir": "mjolnir",
    "matrix_synapse_saml_mozilla": "matrix_synapse_saml_mozilla",
}


def normal(name: str) -> str:
    """A distribution's or module's name in the one form that is compared."""
    name = re.sub(r"[-.]+", "_", name.strip().lower())
    return _DISTRIBUTIONS.get(name, name)


@dataclass
class Work:
    """What was read, what was said so far, and what will be carried.

    :param old: version of the Synapse found, as numbers.
    :param target: version to come, as text.
    :param accepted: keys whose loss the operator has agreed to.
    :param available: what the new release can import, in :func:`normal` form.
    :param carries_files: whether files named in the configuration go along.
    """

    found: Mapping[str, Any]
    reading: Reading
    target: str
    old: tuple[int, ...]
    accepted: frozenset[str]
    available: frozenset[str]
    carries_files: bool = False
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    modules: list[dict[str, Any]] = field(default_factory=list)
    secrets: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    loopback: list[dict[str, Any]] = field(default_factory=list)

    @property
    def values(self) -> dict[str, Any]:
        return self.reading.values

    def say(
        self,
        path: Path | str,
        verdict: Kind,
        reason: str,
        *,
        new_key: str = "",
        todo: str = "",
        where: str = "",
        stated: bool = False,
    ) -> None:
        """Give the verdict on one key. The first one given stands.

        A key that cannot be carried is a problem unless its loss was accepted.
        """
        key = path if isinstance(path, str) else dotted(path)
        if key in self.verdicts:
            return
        if not where and not stated and not isinstance(path, str):
            where = self.reading.where(path)
        self.verdicts[key] = Verdict(key, verdict, reason, new_key, todo, where, stated)
        if verdict != "cannot-carry":
            return
        place = f"{where} {key}".strip()
        if self.is_accepted(key):
            self.warnings.append(Problem(place, reason, "nothing: this loss was accepted"))
        else:
            self.problems.append(
                Problem(place, reason, f"{todo}; or {ACCEPT}" if todo else ACCEPT)
            )

    def is_accepted(self, key: str) -> bool:
        """Whether the key, or the section around it, is among the accepted losses."""
        return any(
            key == row or key.startswith((f"{row}.", f"{row}[", f"{row} ")) for row in self.accepted
        )

    def refuse(self, place: Path | str, what: str, next_step: str) -> None:
        """Add a problem that no acceptance removes."""
        self.problems.append(Problem(self._place(place), what, next_step))

    def warn(self, place: Path | str, what: str, next_step: str) -> None:
        """Add something to know that forbids nothing."""
        self.warnings.append(Problem(self._place(place), what, next_step))

    def can_import(self, names: Iterable[str]) -> bool:
        """Whether the new release has all of these distributions or modules."""
        return all(normal(name) in self.available for name in names)

    def secret(self, name: str, value: str) -> dict[str, str]:
        """Put a secret away and return the reference to it."""
        name = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "secret"
        unique, number = name, 2
        while self.secrets.get(unique, value) != value:
            unique, number = f"{name}_{number}", number + 1
        self.secrets[unique] = value
        return {"secret": unique}

    def file(self, path: str) -> str | None:
        """The text of a file that the minion could read, by its path in the configuration."""
        texts: Mapping[str, str] = self.found.get("config_files") or {}
        return texts.get(self.reading.absolute(path))

    def files_in(self, directory: str) -> dict[str, str]:
        """The files read from a directory, by name."""
        texts: Mapping[str, str] = self.found.get("config_files") or {}
        prefix = self.reading.absolute(directory).rstrip("/") + "/"
        return {
            name.removeprefix(prefix): text
            for name, text in texts.items()
            if name.startswith(prefix) and "/" not in name.removeprefix(prefix)
        }

    def _place(self, place: Path | str) -> str:
        if isinstance(place, str):
            return place
        return f"{self.reading.where(place)} {dotted(place)}".strip()


def version(text: object) -> tuple[int, ...]:
    """Numbers of a version such as ``1.40.0`` or ``1.41.0rc1``; empty when there are none."""
    match = re.match(r"\s*(\d+(?:\.\d+)*)", str(text or ""))
    return tuple(int(part) for part in match.group(1).split(".")) if match else ()


def available(modules: Collection[str]) -> frozenset[str]:
    """Names that the new release can import, in the form that is compared."""
    return frozenset(normal(name) for name in modules)
