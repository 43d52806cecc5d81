"""What machines install from: a flat apt repository and two stores of Python packages."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from .cache import files_digest, made, path_of
from .chamber import Chamber
from .image import Images
from .packages import MIRROR
from .process import host
from .settings import PROJECT, Settings

RELEASES = PROJECT / "formulas" / "synapse" / "files" / "releases"
STORAGE = PROJECT / "formulas" / "storage" / "files"
DATA = Path(__file__).parent / "data"
RECIPE = 1
"""Raised when a change of this file must make new mirrors."""

LEGACY_LOCK = DATA / "legacy-1.40.0.txt"
LEGACY_DATE = "2021-08-31"
#: psycopg2 2.9.1 builds on Debian 12's Python 3.11 but does not import; 2.9.2 does.
LEGACY_NEWER = ["--exclude-newer", LEGACY_DATE, "--exclude-newer-package", "psycopg2=2021-12-28"]
"""Nothing newer is used for 1.40.0, build tools included: that is what lets its old sources
build on Python 3.11."""

LEGACY_ENV = "/home/matrix/synapse/env"
LEGACY_TARBALL = "synapse-1.40.0-env.tar.gz"


@dataclass(frozen=True)
class Mirror:
    """Makes, or finds in the cache, the package stores that every machine sees read-only."""

    settings: Settings
    images: Images

    @property
    def _debs_inputs(self) -> list[object]:
        return [RECIPE, self.images.os_name, MIRROR]

    @property
    def _wheels_inputs(self) -> list[object]:
        locks = sorted([*RELEASES.glob("*.txt"), *STORAGE.glob("*.txt")])
        return [RECIPE, files_digest(*locks, PROJECT / "requirements" / "build.txt")]

    @property
    def _legacy_inputs(self) -> list[object]:
        return [RECIPE, files_digest(LEGACY_LOCK), LEGACY_ENV, self.images.os_name]

    def debs(self) -> Path:
        """Flat apt repository with ``packages.MIRROR`` and all that these need."""
        return made(self.settings.cache, "debs", self._debs_inputs, self._make_debs)

    def wheels(self) -> Path:
        """Wheels and source archives of all that formulas lock: Synapse releases, rclone."""
        return made(self.settings.cache, "wheels", self._wheels_inputs, self._make_wheels)

    def legacy(self) -> Path:
        """Synapse 1.40.0: its venv as one archive, to be unpacked at ``/``."""
        return made(self.settings.cache, "legacy", self._legacy_inputs, self._make_legacy)

    def ready(self) -> bool:
        """True if every store exists."""
        if not self.images.base_path().exists():
            return False
        named = (
            ("debs", self._debs_inputs),
            ("wheels", self._wheels_inputs),
            ("legacy", self._legacy_inputs),
        )
        return all(path_of(self.settings.cache, kind, data).exists() for kind, data in named)

    def binds(self) -> dict[str, Path]:
        """Inside path to store."""
        return {
            "/srv/mirror/debs": self.debs(),
            "/srv/mirror/wheels": self.wheels(),
            "/srv/mirror/wheels-legacy": self.legacy(),
        }

    def _make_debs(self, work: Path) -> None:
        chamber = Chamber(
            layers=[self.images.os()],
            cache=self.settings.cache,
            name="debs",
            log=self.images.log,
            binds={"/run/out": work},
        )
        words = " ".join(MIRROR)
        install = f"install --no-install-recommends {words}"
        chamber.run(
            "apt_get update\n"
            f"apt_get -y --download-only {install}\n"
            # The archive directory may hold older versions: an empty one makes apt name exactly
            # the files of this plan.
            "mkdir -p /run/plan/partial\n"
            f"apt_get -y -o Dir::Cache::Archives=/run/plan --print-uris {install} "
            "| sed -n \"s/^'[^']*' \\([^ ]*\\) .*/\\1/p\" >/run/names\n"
            '[ -s /run/names ]; while read -r name; do cp "/run/host/archives/$name" /run/out/; '
            "done </run/names\n",
            900,
        )
        index = host(["apt-ftparchive", "packages", "."], cwd=work, timeout=120).stdout
        (work / "Packages").write_text(index)
        release = host(["apt-ftparchive", "release", "."], cwd=work, timeout=60).stdout
        (work / "Release").write_text(release)

    def _make_wheels(self, work: Path) -> None:
        chamber = self.images.chamber(
            "wheels",
            binds={
                "/run/out": work,
                "/run/releases": RELEASES,
                "/run/storage": STORAGE,
                "/run/requirements": PROJECT / "requirements",
            },
        )
        fetch = "/run/env/bin/pip -q download --no-deps --require-hashes -d /run/out -r"
        chamber.run(
            "python3 -m venv /run/env\n"
            f"{fetch} /run/requirements/build.txt\n"
            f'for lock in /run/releases/*.txt /run/storage/*.txt; do {fetch} "$lock"; done\n',
            900,
        )

    def _make_legacy(self, work: Path) -> None:
        uv = Path(sys.executable).parent / "uv"
        chamber = self.images.chamber(
            "legacy", binds={"/run/out": work, "/run/data": DATA, "/run/uv": uv}
        )
        chamber.run(
            f"python3 -m venv {LEGACY_ENV}\n"
            f"/run/uv pip install -q -p {LEGACY_ENV}/bin/python {' '.join(LEGACY_NEWER)} "
            f"--require-hashes --compile-bytecode -r /run/data/{LEGACY_LOCK.name}\n"
            f"{LEGACY_ENV}/bin/python -c "
            "'import synapse.app.homeserver, ldap_auth_provider, psycopg2'\n"
            f"tar -C / -I 'gzip -1' -cf /run/out/{LEGACY_TARBALL} {LEGACY_ENV.lstrip('/')}\n",
            900,
        )
        (work / "README").write_text(
            f"Synapse 1.40.0 for Python 3.11: tar -C / -xzf {LEGACY_TARBALL}\n"
        )
