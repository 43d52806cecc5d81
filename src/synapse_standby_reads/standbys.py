"""The standbys that there are: of the configuration, or of a file that may change at any time."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .config import Config, entry_problems, name_of
from .errors import Refused
from .standby import Standby

logger = logging.getLogger(__name__)

#: Seconds between two looks at the file.
LOOK_SECONDS = 1.0

Entry = Mapping[str, Any]


def read(path: Path) -> list[Entry]:
    """The entries of a file; none if there is no file, which is how all reads go to the primary.

    :raises Refused: it is not a list of standbys.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise Refused(f"{path}: {error}") from None
    problems = entry_problems(entries) if isinstance(entries, list) else ["it is not a list"]
    if problems:
        raise Refused(f"{path}: {'; '.join(problems)}")
    return list(entries)


class Standbys:
    """:param config: of the module.
    :param make: a standby of an entry, not started.
    :ivar bad_file: whether the file as it is now was refused.
    """

    def __init__(self, config: Config, make: Callable[[Entry], Standby]) -> None:
        self._path = Path(config.standbys_file) if config.standbys_file else None
        self._entries = config.standbys
        self._make = make
        self._all: tuple[Standby, ...] = ()
        self._leaving: tuple[Standby, ...] = ()
        self._turn = 0
        self._said = ""
        self.bad_file = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="standby-reads-list", daemon=True)

    def __iter__(self) -> Iterator[Standby]:
        return iter(self._all)

    def start(self) -> None:
        """Read them once, and again whenever the file changes."""
        if self._path is None:
            self._set(self._entries)
        else:
            self.look()
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._set(())

    def patrolled(self) -> Iterator[Standby]:
        """Those that may have connections, the ones that have left the list with them."""
        return iter((*self._all, *(each for each in self._leaving if each.running)))

    def choose(self) -> Standby | None:
        """The one that is good and has the least to do; None: the primary."""
        self._turn += 1
        now = time.monotonic()
        turned = self._all[self._turn % len(self._all) :] if self._all else ()
        for standby in sorted(
            (*turned, *self._all[: len(self._all) - len(turned)]), key=lambda each: each.running
        ):
            if standby.allows(now):
                return standby
        return None

    def look(self) -> None:
        """Read the file; one that is wrong changes nothing."""
        assert self._path is not None
        try:
            entries = read(self._path)
        except Refused as error:
            self.bad_file = True
            if str(error) != self._said:
                logger.error("standby reads: %s; the standbys of before stay. Write the file anew, "
                             "in one move", error)
            self._said = str(error)
            return
        self.bad_file = False
        self._said = ""
        self._set(entries)

    def _set(self, entries: tuple[Entry, ...] | list[Entry]) -> None:
        have = {standby.name: standby for standby in self._all}
        wanted = {name_of(entry): dict(entry) for entry in entries}
        going = [each for name, each in have.items() if wanted.get(name) != each.entry]
        coming = [self._make(entry) for name, entry in wanted.items()
                  if name not in have or have[name].entry != entry]
        if not going and not coming:
            return
        # Those that go first get no more interactions, and are stopped after.
        self._all = (*(each for each in self._all if each not in going), *coming)
        self._leaving = (*(each for each in self._leaving if each.running), *going)
        for standby in coming:
            standby.start()
        for standby in going:
            standby.stop()

    def _run(self) -> None:
        # A file of the same size may be written twice within a second, so the text is compared.
        while not self._ended.wait(LOOK_SECONDS):
            self.look()
