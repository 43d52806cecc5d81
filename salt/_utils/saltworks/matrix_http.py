"""HTTP as a good client of a server that is being worked on: what is tried again, and what not.

- a request that may be repeated (GET, PUT with its transaction id, DELETE) is tried again, the
  same in every byte, after a connection error, a 429 or a 5xx; bounded by `retry_for`;
- a POST is tried again only when the server cannot have acted on it: 429, or no connection made;
- a kept connection that the server closed while it was idle, seen before a byte of the answer,
  is what RFC 9112 sections 9.3.1 and 9.6 tell clients to expect: the request is repeated at once
  on a new connection. POSTs use a connection of their own, so it does not happen to them.

Every attempt that went wrong is told to the `on_trouble` hook, whether it is repeated or not.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

SYSTEM_CA = "/etc/ssl/certs/ca-certificates.crt"

RETRIED_STATUS = frozenset({429, 500, 502, 503, 504})
# A kept connection that had been closed fails at once. One that fails later had its request taken,
# so that one is a request cut in flight and no keepalive matter.
STALE_WITHIN = 0.5

STALE = "stale_connection"

Json = dict[str, Any]


class MatrixError(Exception):
    """An answer that is no success; `status` 0 means that no answer came at all.

    Attributes: status (HTTP), errcode (`M_...`, or "" where the body is not Matrix's), error
    (text), method, path, cause (short name for counting: `http_502`, `refused`, `reset`, ...),
    retry_after (seconds, from `retry_after_ms` or `Retry-After`, or None), body (the answer's).
    """

    def __init__(
        self,
        status: int,
        errcode: str,
        error: str,
        method: str,
        path: str,
        *,
        cause: str = "",
        retry_after: float | None = None,
        body: Json | None = None,
    ) -> None:
        super().__init__(status, errcode, error, method, path)
        self.status = status
        self.errcode = errcode
        self.error = error
        self.method = method
        self.path = path
        self.cause = cause or f"http_{status}"
        self.retry_after = retry_after
        self.body = body or {}

    @property
    def retry_session(self) -> str | None:
        """The session to prove oneself in, where the answer asked for the password again."""
        session = self.body.get("session")
        return str(session) if session else None

    def __str__(self) -> str:
        answer = f"HTTP {self.status} {self.errcode}".strip() if self.status else self.cause
        return f"{self.method} {self.path}: {answer}: {self.error}"


@dataclass(frozen=True)
class Trouble:
    """One attempt that went wrong. `started` is Unix time, `seconds` what this attempt took."""

    method: str
    path: str
    status: int
    cause: str
    detail: str
    started: float
    seconds: float
    attempt: int
    retried: bool


_local = threading.local()


class _Connection(HTTPConnection):
    def connect(self) -> None:
        _local.connects = getattr(_local, "connects", 0) + 1
        super().connect()


class _TlsConnection(HTTPSConnection):
    def connect(self) -> None:
        _local.connects = getattr(_local, "connects", 0) + 1
        super().connect()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _OncePool(_Pool):
    # `Connection: close` alone would not do: a server may close without saying so in its answer.
    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.close()
        super()._put_conn(conn)


class _OnceTlsPool(_TlsPool):
    def _put_conn(self, conn: Any) -> None:
        if conn is not None:
            conn.close()
        super()._put_conn(conn)


class _Adapter(HTTPAdapter):
    """The usual adapter, but each thread can see whether its request made a new connection."""

    pools: ClassVar[dict[str, type[HTTPConnectionPool]]] = {"http": _Pool, "https": _TlsPool}

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self.pools


class _ElsewhereMixin:
    """For a name whose address is given: TLS still asks for, and checks, the name."""

    server: ClassVar[str] = ""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        named = {"server_hostname": self.server, "assert_hostname": self.server}
        super().init_poolmanager(*args, **kwargs, **named)  # type: ignore[misc]


class _OnceAdapter(_Adapter):
    """An adapter whose connections serve one request each."""

    pools: ClassVar[dict[str, type[HTTPConnectionPool]]] = {
        "http": _OncePool,
        "https": _OnceTlsPool,
    }


def quoted(*parts: str) -> str:
    """The path made of the parts, each escaped (`!room:server` has characters that need it)."""
    return "".join("/" + quote(part, safe="") for part in parts)


def connection_cause(error: BaseException) -> str:
    """A short name for why a connection failed: dns, refused, unreachable, tls, timeout, reset."""
    text = repr(error)
    if isinstance(error, requests.exceptions.SSLError):
        # An end of file without TLS's own goodbye is a cut connection, no trouble with TLS.
        return "reset" if "EOF" in text else "tls"
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return "connect_timeout"
    if isinstance(error, requests.exceptions.Timeout):
        return "timeout"
    for cause, marks in {
        "dns": ("NameResolutionError", "Name or service not known", "name resolution"),
        "refused": ("Connection refused",),
        "unreachable": ("No route to host", "Network is unreachable", "Host is unreachable"),
        "timeout": ("Read timed out", "ReadTimeoutError"),
    }.items():
        if any(mark in text for mark in marks):
            return cause
    return "reset"


def connection_reason(error: BaseException) -> str:
    """The innermost reason of a connection's failure, without the layers wrapped around it."""
    inner = error
    for _ in range(8):
        causes = [getattr(inner, "reason", None), *reversed(inner.args)]
        cause = next((cause for cause in causes if isinstance(cause, BaseException)), None)
        if cause is None:
            break
        inner = cause
    return str(inner).rpartition(": ")[2] or type(inner).__name__


class Http:
    """Requests to one server, with one access token.

    base_url: `https://chat.example.org`, no path. ca: file with the authorities to trust (default:
    the system's). timeout: seconds for one attempt. retry_for: seconds, from the first attempt on,
    in which another may still begin. on_trouble: called with a `Trouble` for each failed attempt.
    connect_to: address to connect to instead of asking what the name's is; TLS and Host keep the
    name, as when its record is about to move. Proxy variables of the environment are not used:
    the witness must see what a client sees. Each thread should have its own; nothing is locked.
    """

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        timeout: float = 30,
        *,
        retry_for: float = 60,
        on_trouble: Callable[[Trouble], None] | None = None,
        connect_to: str | None = None,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.connect_to = connect_to
        self._root = _at(self.base_url, connect_to) if connect_to else self.base_url
        self.token = token
        self.ca = os.fspath(ca) if ca else None
        self.timeout = timeout
        self.retry_for = retry_for
        self.on_trouble = on_trouble
        self._kept = self._new_session(_Adapter)
        self._fresh = self._new_session(_OnceAdapter)
        self._fresh.headers["Connection"] = "close"

    def _new_session(self, adapter: type[_Adapter]) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        default = SYSTEM_CA if os.path.exists(SYSTEM_CA) else True
        session.verify = self.ca or default
        for scheme in ("http://", "https://"):
            session.mount(scheme, adapter(max_retries=0))
        if self.connect_to:
            named = urlsplit(self.base_url)
            elsewhere = type(
                "_Elsewhere", (_ElsewhereMixin, adapter), {"server": named.hostname or ""}
            )
            session.mount("https://", elsewhere(max_retries=0))
            session.headers["Host"] = named.netloc
        return session

    def close(self) -> None:
        """Closes the kept connections."""
        self._kept.close()
        self._fresh.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self,
        method: str,
        path: str,
        json: Any = None,
        data: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        params: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        retry: bool = True,
        *,
        raw: bool = False,
        expect: Collection[int] = (),
    ) -> Any:
        """Sends one request, and again where that is right, and returns what was answered.

        path: from the root (`/_matrix/...`), escaped. Returns a dict (or list) where the answer is
        JSON, else bytes; with `raw` always bytes. `expect` names statuses which the caller is
        ready for: they raise, but are no trouble. Raises MatrixError.
        """
        begun = time.monotonic()
        for attempt in itertools.count(1):
            started, clock = time.time(), time.monotonic()
            connects = getattr(_local, "connects", 0)
            try:
                return self._once(method, path, json, data, headers, params, timeout, raw)
            except MatrixError as error:
                seconds = time.monotonic() - clock
                reused = getattr(_local, "connects", 0) == connects
                if error.status in expect:
                    raise
                stale = error.cause == "reset" and reused and seconds < STALE_WITHIN
                if stale:
                    error.cause = STALE
                pause = 0.0 if stale else _pause(attempt, error.retry_after)
                left = self.retry_for - (time.monotonic() - begun)
                retried = (
                    retry
                    and ((stale and method != "POST") or _may_repeat(method, error))
                    and pause < left
                )
                self._tell(error, started, seconds, attempt, retried)
                if not retried:
                    raise
                time.sleep(pause)
        raise AssertionError("unreachable")

    def _tell(
        self,
        error: MatrixError,
        started: float,
        seconds: float,
        attempt: int,
        retried: bool,
    ) -> None:
        if self.on_trouble is None:
            return
        self.on_trouble(
            Trouble(
                method=error.method,
                path=error.path,
                status=error.status,
                cause=error.cause,
                detail=error.error,
                started=started,
                seconds=seconds,
                attempt=attempt,
                retried=retried,
            )
        )

    def _once(
        self,
        method: str,
        path: str,
        json: Any,
        data: bytes | None,
        headers: Mapping[str, str] | None,
        params: Mapping[str, Any] | None,
        timeout: float | None,
        raw: bool,
    ) -> Any:
        session = self._fresh if method == "POST" else self._kept
        sent = dict(headers or {})
        if self.token is not None:
            sent.setdefault("Authorization", f"Bearer {self.token}")
        try:
            answer = session.request(
                method,
                self._root + path,
                json=json,
                data=data,
                headers=sent,
                params=params,
                timeout=timeout or self.timeout,
                allow_redirects=False,
            )
        except requests.exceptions.RequestException as error:
            # A body that ends too early (ChunkedEncodingError and the like) is no stale
            # connection: bytes of the answer had come.
            cause = connection_cause(error)
            if cause == "reset" and not isinstance(error, requests.exceptions.ConnectionError):
                cause = "cut_in_answer"
            text = connection_reason(error)
            raise MatrixError(0, "", text, method, path, cause=cause) from error
        if not 200 <= answer.status_code < 300:
            raise _refusal(answer, method, path)
        if raw or "json" not in answer.headers.get("Content-Type", ""):
            return answer.content
        try:
            return answer.json()
        except ValueError as error:
            text = f"the answer says it is JSON and is not: {error}"
            raise MatrixError(0, "", text, method, path, cause="bad_json") from error


def _at(url: str, address: str) -> str:
    """The URL with an address in place of its name, the port kept."""
    split = urlsplit(url)
    host = f"[{address}]" if ":" in address else address
    return split._replace(netloc=f"{host}:{split.port}" if split.port else host).geturl()


def _may_repeat(method: str, error: MatrixError) -> bool:
    if error.status == 429 or error.cause in ("dns", "refused", "unreachable", "connect_timeout"):
        return True
    if method == "POST" or error.cause == "tls":
        return False
    return error.status == 0 or error.status in RETRIED_STATUS


def _pause(attempt: int, retry_after: float | None) -> float:
    if retry_after is not None:
        return retry_after
    return min(2.0, 0.1 * 2.0 ** min(attempt - 1, 8)) * random.uniform(0.8, 1.2)


def _refusal(answer: requests.Response, method: str, path: str) -> MatrixError:
    body: Any = None
    with contextlib.suppress(ValueError):
        body = answer.json()
    if not isinstance(body, dict):
        body = {}
    retry_after: float | None = None
    with contextlib.suppress(KeyError, TypeError, ValueError):
        if "retry_after_ms" in body:
            retry_after = max(0.0, float(body["retry_after_ms"]) / 1000)
        else:
            retry_after = max(0.0, float(answer.headers["Retry-After"]))
    text = str(body.get("error") or answer.reason or "")
    return MatrixError(
        answer.status_code,
        str(body.get("errcode") or ""),
        text,
        method,
        path,
        retry_after=retry_after,
        body=body,
    )
