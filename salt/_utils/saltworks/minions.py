"""Calling machines from a runner: one bounded call, and an error that names the machine."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import salt.client
import salt.key
import salt.utils.jid
from salt.exceptions import SaltException

from .errors import Problem

log = logging.getLogger(__name__)

#: After how many seconds without an answer a machine is asked whether it is still at work.
ASK_SECONDS = 15

#: For how long machines are waited for at the most that are asked together.
BOUND_SECONDS = 120.0

#: ``queue`` of a state run: it waits there for those before it, behind so many at the most. With
#: True Salt puts it aside on the machine's disk, and the machine says to whoever asks that it does
#: not work on it: it is given up (salt/modules/state.py, ``_check_queue``).
QUEUE = 100

#: The states of a machine's role, for ``state.sls``: what its highstate is, without the two seconds
#: in which Salt first looks for new modules (salt/state.py, ``load_dynamic``).
ROLE_SLS = "roles"

#: What the project has for machines, to the options of its sync: the master's own code in
#: ``_utils`` never leaves it (``file_ignore_glob``), and ``sync_all`` asks for twenty kinds. New
#: states are found by each state run; for new functions the minion looks through its modules again.
MODULES = {"states": {"refresh": False}, "modules": {}}

#: Between two looks for answers, in seconds.
LOOK_SECONDS = 0.02

#: How long the master may take to write an answer into its job cache.
FORGET_SECONDS = 10


class MachineError(Exception):
    """A machine did not answer, or answered with an error."""


def or_error(row: Any) -> Mapping[str, Any]:
    """A machine's answer; in the place of none ``{"error": text}``."""
    return {"error": str(row)} if isinstance(row, MachineError) else row


class Caller(Protocol):
    """The part of :class:`Machines` by which modules are brought."""

    def calls(
        self, minions: Sequence[str], function: str, *args: Any, **kwargs: Any
    ) -> Mapping[str, Any]: ...


def bring_modules(machines: Caller, minions: Sequence[str], **bounds: float) -> dict[str, str]:
    """The project's newest modules are on machines: :data:`ROLE_SLS` brings none.

    :param bounds: as :meth:`Machines.calls` takes them.
    :returns: machine to what went wrong there.
    """
    wrong: dict[str, str] = {}
    for kind, options in MODULES.items():
        # Who does not answer once is not waited for a second time.
        names = [name for name in minions if name not in wrong]
        try:
            answers = machines.calls(
                names, f"saltutil.sync_{kind}", saltenv="base", **options, **bounds
            )
        except MachineError as error:
            answers = dict.fromkeys(names, error)
        wrong |= {name: str(row) for name, row in answers.items() if isinstance(row, MachineError)}
    for line in wrong.values():
        log.warning("modules: %s", line)
    return wrong


class Machines:
    """Accepted minions, reached through one open client.

    :param opts: the master's options.
    """

    def __init__(self, opts: Mapping[str, Any]) -> None:
        self.opts = opts
        self._client = salt.client.get_local_client(mopts=dict(opts))

    def accepted(self) -> list[str]:
        """Ids whose keys are accepted."""
        with salt.key.get_key(dict(self.opts)) as keys:
            return sorted(keys.list_keys().get("minions", []))

    def answering(
        self, minions: list[str], timeout: int = 10, patience: int | None = None
    ) -> set[str]:
        """Those of the minions that answer a ping within ``timeout`` seconds.

        :param patience: seconds more for those who then say that they are still at it; the
            master's ``gather_job_timeout`` when nothing is said.
        :raises MachineError: the master could not be asked.
        """
        more = {} if patience is None else {"gather_job_timeout": patience}
        try:
            answers = self._client.cmd(
                minions, "test.ping", tgt_type="list", timeout=timeout, **more
            )
        except SaltException as error:
            raise _unsent("test.ping", minions, error) from error
        return {name for name, answer in answers.items() if answer is True}

    def call(
        self,
        minion: str,
        function: str,
        *args: Any,
        timeout: int = ASK_SECONDS,
        bound: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call one function on one machine.

        :param timeout: seconds without an answer after which the machine is asked whether
            it still works on it; as long as it says so it is waited for. The function
            itself is bounded on the machine.
        :param bound: seconds after which it is not waited for any more, whatever it says.
        :raises MachineError: no answer, or the function failed there.
        """
        if bound is not None:
            answer = self.calls(
                [minion], function, *args, timeout=timeout, bound=bound, **kwargs
            )[minion]
            if isinstance(answer, MachineError):
                raise answer
            return answer
        try:
            answers = self._client.cmd(
                [minion],
                function,
                list(args),
                tgt_type="list",
                timeout=timeout,
                full_return=True,
                kwarg=kwargs,
            )
        except SaltException as error:
            raise _unsent(function, [minion], error) from error
        return self._answer(minion, function, answers, timeout)

    def calls(
        self,
        minions: Sequence[str],
        function: str,
        *args: Any,
        timeout: int = ASK_SECONDS,
        bound: float = BOUND_SECONDS,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """:meth:`call` on several machines at once: each one's answer, or its error.

        :param bound: seconds after which no machine is waited for any more, even if it says that
            it is still at it.
        """
        answers: dict[str, Any] = {}
        end = time.monotonic() + bound
        try:
            # The other ways to ask wait as long as a machine says that it is at work.
            for row in self._client.cmd_iter_no_block(
                list(minions),
                function,
                list(args),
                tgt_type="list",
                timeout=timeout,
                kwarg=kwargs,
            ):
                answers.update(row or {})
                if time.monotonic() > end:
                    break
                if not row:
                    time.sleep(LOOK_SECONDS)
        except SaltException as error:
            raise _unsent(function, minions, error) from error
        waited = bound if time.monotonic() > end else timeout
        found: dict[str, Any] = {}
        for minion in minions:
            try:
                found[minion] = self._answer(minion, function, answers, waited)
            except MachineError as error:
                found[minion] = error
        return found

    def call_unrecorded(
        self, minion: str, function: str, *args: Any, timeout: int = ASK_SECONDS
    ) -> Any:
        """Like :meth:`call`, for answers that hold secrets: the job cache forgets them."""
        pub = self._client.run_job([minion], function, list(args), tgt_type="list", timeout=timeout)
        jid = pub.get("jid")
        if not jid:
            raise MachineError(f"{minion}: {function} could not be published; is the master up?")
        try:
            answers: dict[str, Any] = {}
            for row in self._client.get_cli_returns(jid, {minion}, timeout=timeout):
                answers.update(row)
            return self._answer(minion, function, answers, timeout)
        finally:
            folder = Path(
                salt.utils.jid.jid_dir(
                    jid, str(Path(self.opts["cachedir"]) / "jobs"), self.opts["hash_type"]
                )
            )
            _forget(folder, folder / minion / "return.p")

    def attempt(
        self,
        minion: str,
        function: str,
        *args: Any,
        timeout: int = ASK_SECONDS,
        bound: float | None = None,
        **kwargs: Any,
    ) -> tuple[Any, list[Problem]]:
        """:meth:`call`, with a failure as a problem instead of an exception."""
        try:
            return self.call(
                minion, function, *args, timeout=timeout, bound=bound, **kwargs
            ), []
        except MachineError as error:
            return None, [Problem(minion, str(error), "see the minion's log on that machine")]

    @staticmethod
    def _answer(minion: str, function: str, answers: Any, seconds: float) -> Any:
        row = (answers or {}).get(minion)
        if not isinstance(row, Mapping) or "ret" not in row:
            raise MachineError(
                f"{minion} did not answer {function} within {seconds:g} s; is its salt-minion up?"
            )
        if row.get("retcode"):
            raise MachineError(f"{function} failed on {minion}: {_words(row['ret'])}")
        return row["ret"]


def _unsent(function: str, minions: Sequence[str], error: SaltException) -> MachineError:
    return MachineError(
        f"{function} could not be sent to {', '.join(minions)}: {error}; is the salt-master up?"
    )


def _words(answer: Any) -> Any:
    """What a state run says of its failed steps; another answer as it is."""
    if not isinstance(answer, Mapping):
        return answer
    steps = [row for row in answer.values() if isinstance(row, Mapping) and "result" in row]
    failed = [
        f"{row.get('__id__')}: {row.get('comment')}"
        for row in steps
        if row["result"] is False and "requisite failed" not in str(row.get("comment"))
    ]
    return "; ".join(failed) or answer


def _forget(folder: Path, answer: Path) -> None:
    """Remove a job from the cache once its answer is in it, and see that it stays away.

    The master's workers write it down on their own time, maybe after we have it.

    :raises MachineError: when it keeps coming back for ``FORGET_SECONDS``.
    """
    end = time.monotonic() + FORGET_SECONDS
    while not answer.exists() and time.monotonic() < end:
        time.sleep(0.05)
    gone = 0
    while gone < 20:
        gone = 0 if folder.exists() else gone + 1
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > end + FORGET_SECONDS:
            raise MachineError(f"{folder} holds secrets and does not stay away: remove it by hand")
        time.sleep(0.05)
