"""etcd 3 by its JSON gateway, with a client certificate: what is read, swapped and removed.

Paths and fields: https://etcd.io/docs/v3.4/dev-guide/api_grpc_gateway/

``at`` of all functions: ``hosts`` (``name:port`` each; the name is verified, and the first that
answers is asked), and files: ``crt`` and ``key`` of our certificate, ``authority`` behind etcd's.
"""

from __future__ import annotations

import base64
import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

from salt.exceptions import CommandExecutionError

__virtualname__ = "etcd_keys"

At = Mapping[str, Any]

#: Seconds for one answer of one member.
ANSWER_SECONDS = 3.0


def __virtual__() -> str:
    return __virtualname__


def read(at: At, key: str) -> dict[str, Any]:
    """What a key holds: ``text``, and its ``revision``; empty and 0 where there is no key."""
    rows = _post(at, "kv/range", {"key": _coded(key)}).get("kvs", [])
    return _value(rows[0]) if rows else {"text": "", "revision": 0}


def below(at: At, prefix: str) -> dict[str, dict[str, Any]]:
    """All keys that begin with ``prefix``, each to what :func:`read` says of it."""
    rows = _post(at, "kv/range", _range(prefix)).get("kvs", [])
    return {base64.b64decode(row["key"]).decode(): _value(row) for row in rows}


def swap(at: At, key: str, text: str, revision: int) -> bool:
    """Write a key, if it is still at a revision.

    :param revision: as read; 0: there was none.
    :returns: whether it was.
    """
    compare = {"key": _coded(key), "target": "MOD", "mod_revision": str(revision)}
    put = {"requestPut": {"key": _coded(key), "value": _coded(text)}}
    answer = _post(at, "kv/txn", {"compare": [compare], "success": [put]})
    return bool(answer.get("succeeded"))


def remove(at: At, prefix: str) -> int:
    """Remove all keys that begin with ``prefix``.

    :returns: how many there were.
    """
    return int(_post(at, "kv/deleterange", _range(prefix)).get("deleted", 0))


def members(at: At) -> dict[str, dict[str, Any]]:
    """Name of each member → ``id`` and ``url`` for clients."""
    rows = _post(at, "cluster/member/list", {}).get("members", [])
    return {
        row.get("name", row["ID"]): {"id": row["ID"], "url": (row.get("clientURLs") or [""])[0]}
        for row in rows
    }


def status(at: At) -> dict[str, Any]:
    """What the first member that answers says of itself."""
    answer = _post(at, "maintenance/status", {})
    # Its own id is beside, in the header.
    return {**answer, "id": answer.get("header", {}).get("member_id", "")}


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


def range_end(prefix: str) -> bytes:
    """The first key behind all that begin with ``prefix``."""
    raw = prefix.encode()
    return raw[:-1] + bytes([raw[-1] + 1])


def _post(at: At, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The first answer.

    :raises CommandExecutionError: there is none.
    """
    context = ssl.create_default_context(cafile=at["authority"])
    context.load_cert_chain(at["crt"], at["key"])
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    opener = urllib.request.build_opener(*handlers)
    said = []
    for host in at["hosts"]:
        request = urllib.request.Request(
            f"https://{host}/v3/{path}", json.dumps(fields).encode(),
            {"Content-Type": "application/json"},
        )
        try:
            with opener.open(request, timeout=ANSWER_SECONDS) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            said.append(f"{host}: {error.code}: {error.read(300).decode(errors='replace')}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            said.append(f"{host}: {error}")
    raise CommandExecutionError(
        f"no etcd answers ({'; '.join(said) or 'none is named'}); see systemctl status etcd there, "
        "and the firewall between"
    )


def _range(prefix: str) -> dict[str, str]:
    return {"key": _coded(prefix), "range_end": base64.b64encode(range_end(prefix)).decode()}


def _coded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _value(row: Mapping[str, Any]) -> dict[str, Any]:
    text = base64.b64decode(row.get("value", "")).decode()
    return {"text": text, "revision": int(row["mod_revision"])}
