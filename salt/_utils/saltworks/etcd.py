"""etcd 3 by its JSON gateway, with a client certificate: what is read, swapped and removed.

Paths and fields: https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Seconds for one answer of one member.
ANSWER_SECONDS = 3.0


class EtcdError(Exception):
    """etcd did not answer as it should."""


@dataclass(frozen=True)
class Value:
    """What a key holds, and its revision: 0 where there is no key."""

    text: str
    revision: int


def range_end(prefix: str) -> bytes:
    """The first key behind all that begin with ``prefix``."""
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1])


def health(statuses: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, Any]:
    """How a cluster stands, by what each member says of itself.

    :param statuses: member name → answer of ``maintenance/status``; those that answered.
    :param names: member id → name, of all members.
    :returns: ``healthy`` (most members answer, and name one leader), ``leader`` (its name, or
        ``''``), ``members``: name → ``up``, and of those that are: ``leader``, ``term``,
        ``bytes``.
    """
    leaders = [str(row.get("leader", "0")) for row in statuses.values()]
    agreed = {leader for leader in leaders if leader in names}
    quorum = len(names) // 2 + 1
    one = agreed.pop() if len(agreed) == 1 else ""
    members = {
        name: {
            "up": name in statuses,
            **(
                {
                    "leader": str(statuses[name].get("leader")) == number,
                    "term": int(statuses[name].get("raftTerm", 0)),
                    "bytes": int(statuses[name].get("dbSize", 0)),
                }
                if name in statuses
                else {}
            ),
        }
        for number, name in names.items()
    }
    healthy = bool(one) and leaders.count(one) >= quorum
    return {"healthy": healthy, "leader": names.get(one, ""), "members": members}


class Store:
    """The members of an etcd; each question goes to the first one that answers."""

    def __init__(self, hosts: Sequence[str], crt: str, key: str, authority: str) -> None:
        """
        :param hosts: ``name:port``; the name is verified.
        :param crt: file of our certificate.
        :param key: file of its key.
        :param authority: file of the authority behind etcd's certificates.
        """
        self.hosts = list(hosts)
        context = ssl.create_default_context(cafile=authority)
        context.load_cert_chain(crt, key)
        handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
        self._opener = urllib.request.build_opener(*handlers)

    def read(self, key: str) -> Value:
        """What a key holds."""
        rows = self._post("kv/range", {"key": _coded(key)}).get("kvs", [])
        return _value(rows[0]) if rows else Value("", 0)

    def below(self, prefix: str) -> dict[str, Value]:
        """All keys that begin with ``prefix``."""
        rows = self._post("kv/range", _range(prefix)).get("kvs", [])
        return {base64.b64decode(row["key"]).decode(): _value(row) for row in rows}

    def swap(self, key: str, text: str, revision: int) -> bool:
        """Write a key, if it is still at a revision.

        :param revision: as read; 0: there was none.
        :returns: whether it was.
        """
        compare = {"key": _coded(key), "target": "MOD", "mod_revision": str(revision)}
        put = {"requestPut": {"key": _coded(key), "value": _coded(text)}}
        answer = self._post("kv/txn", {"compare": [compare], "success": [put]})
        return bool(answer.get("succeeded"))

    def remove(self, prefix: str) -> int:
        """Remove all keys that begin with ``prefix``.

        :returns: how many there were.
        """
        return int(self._post("kv/deleterange", _range(prefix)).get("deleted", 0))

    def members(self) -> dict[str, dict[str, Any]]:
        """Name of each member → ``id`` and ``url`` for clients."""
        rows = self._post("cluster/member/list", {}).get("members", [])
        return {
            row.get("name", row["ID"]): {"id": row["ID"], "url": (row.get("clientURLs") or [""])[0]}
            for row in rows
        }

    def status(self, host: str) -> dict[str, Any]:
        """What one member says of itself.

        :param host: ``name:port``.
        """
        answer = self._asked(host, "maintenance/status", {})
        # Its own id is beside, in the header.
        return {**answer, "id": answer.get("header", {}).get("member_id", "")}

    def _post(self, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        said = []
        for host in self.hosts:
            try:
                return self._asked(host, path, fields)
            except EtcdError as error:
                said.append(f"{host}: {error}")
        raise EtcdError(
            f"no etcd answers ({'; '.join(said) or 'none is named'}); see systemctl status etcd "
            "there, and the firewall between"
        )

    def _asked(self, host: str, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        request = urllib.request.Request(
            f"https://{host}/v3/{path}", json.dumps(fields).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
                value: dict[str, Any] = json.load(answer)
                return value
        except urllib.error.HTTPError as error:
            raise EtcdError(f"{error.code}: {error.read(300).decode(errors='replace')}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise EtcdError(str(error)) from None


def _range(prefix: str) -> dict[str, str]:
    return {"key": _coded(prefix), "range_end": base64.b64encode(range_end(prefix)).decode()}


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _value(row: Mapping[str, Any]) -> Value:
    text = base64.b64decode(row.get("value", "")).decode()
    return Value(text, int(row["mod_revision"]))
