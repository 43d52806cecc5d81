"""Where the old Synapse listens, and what of that the new one will serve."""

from __future__ import annotations

from typing import Any

from . import keys
from .rules import rule
from .sections import put, unknown
from .work import Work

_KNOWN = keys.words("""
additional_resources bind_address bind_addresses mode path port request_id_header resources tag
tls type x_forwarded
""")

#: Resources that an http listener with client and federation serves anyway.
_IMPLIED = frozenset(("health", "keys", "media", "openid", "static"))


@rule("listeners")
def _listeners(work: Work, key: str, value: Any) -> None:
    if not isinstance(value, list):
        work.say((key,), "cannot-carry", "it must be a list of listeners", todo="write a list")
        return
    if not value:
        work.say((key,), "dropped-no-effect", "the list is empty")
        return
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            work.say((key, index), "cannot-carry", "a listener must be a section with a type")
        else:
            _one(work, index, item)


@rule("bind_port", "unsecure_port", "bind_host", "no_tls", "gzip_responses")
def _old_style(work: Work, key: str, value: Any) -> None:
    if key == "no_tls":
        work.say((key,), "replaced", "our listeners have no TLS; nginx has it")
    elif work.values.get("bind_port"):
        work.say((key,), "replaced", "our own listeners take its place")
    else:
        work.say((key,), "dropped-no-effect", "without bind_port it does nothing")


@rule("metrics_port", "metrics_bind_host", "manhole", "manhole_settings")
def _side_doors(work: Work, key: str, value: Any) -> None:
    main = {"metrics_bind_host": "metrics_port", "manhole_settings": "manhole"}.get(key)
    if main and not work.values.get(main) and not _has_type(work, main.removesuffix("_port")):
        work.say((key,), "dropped-no-effect", f"without {main} it does nothing")
    elif value:
        work.say((key,), "cannot-carry", *_SIDE_DOORS[main or key])
    else:
        work.say((key,), "dropped-no-effect", "it is off")


_SIDE_DOORS = {
    "manhole": ("a debugging door into the running process is not kept",),
    "metrics_port": ("the new Synapse has no listener for metrics yet",),
}


def chosen(work: Work) -> tuple[str, int] | None:
    """Address and port at which the Synapse found answers clients by plain HTTP.

    A problem is added when there is none.
    """
    rows = http_listeners(work)
    clients = [row for row in rows if "client" in row[3]]
    plain = [row for row in clients if not row[2]]
    if plain:
        return plain[0][0], plain[0][1]
    why = "no listener serves clients"
    if clients:
        why = "clients are served by TLS only"
    elif any(row.get("path") for row in _rows(work)):
        why = "clients are served through a UNIX socket only"
    work.refuse(
        ("listeners",),
        f"{why}; the front door speaks plain HTTP to a port of the Synapse found",
        "add a listener with port: 8008, type: http, bind_addresses: ['127.0.0.1'], "
        "resources: [{names: [client, federation]}], and restart it",
    )
    return None


def http_listeners(work: Work) -> list[tuple[str, int, bool, set[str]]]:
    """Address to reach it, port, whether TLS, and resource names of each http listener."""
    rows: list[tuple[str, int, bool, set[str]]] = []
    bind_port = work.values.get("bind_port")
    if isinstance(bind_port, int) and bind_port:
        address = _reachable([str(work.values.get("bind_host") or "")])
        unsecure = work.values.get("unsecure_port", bind_port - 400)
        names = {"client", "federation"}
        if isinstance(unsecure, int) and unsecure:
            rows.append((address, unsecure, False, names))
        rows.append((address, bind_port, True, names))
        return rows
    for item in _rows(work):
        if item.get("type") != "http":
            continue
        port = item.get("port")
        tls = bool(item.get("tls"))
        if not isinstance(port, int) or (tls and work.values.get("no_tls")):
            continue
        bound = item.get("bind_addresses") or []
        addresses = [str(row) for row in bound] if isinstance(bound, list) else [str(bound)]
        if item.get("bind_address"):
            addresses.append(str(item["bind_address"]))
        rows.append((_reachable(addresses), port, tls, _names(item)))
    return rows


def state_federation(work: Work) -> None:
    """Where no listener served federation, say so to the new one, whose listener does."""
    rows = http_listeners(work)
    if not rows or any("federation" in row[3] for row in rows):
        return
    if work.values.get("federation_domain_whitelist") is not None:
        return
    put(work, ("federation_domain_whitelist",), [])
    work.say(
        "federation_domain_whitelist", "replaced",
        "no listener of the old server serves federation, ours does: an empty list keeps every "
        "other server out", stated=True, todo="remove it to federate",
    )


def _one(work: Work, index: int, item: dict[str, Any]) -> None:
    base = ("listeners", index)
    kind = item.get("type")
    if kind == "replication":
        work.say(
            (*base, "type"), "cannot-carry",
            "TCP replication is gone (1.67) and stops Synapse; it was for workers",
            todo="remove the listener; several processes need Redis today",
        )
    elif kind in ("manhole", "metrics"):
        door = _SIDE_DOORS["manhole" if kind == "manhole" else "metrics_port"]
        work.say((*base, "type"), "cannot-carry", *door)
    elif kind != "http":
        work.say(
            (*base, "type"), "cannot-carry", f"no Synapse knows a listener of type {kind!r}",
            todo="remove the listener",
        )
    else:
        work.say((*base, "type"), "replaced", "our own listeners serve HTTP")
    for key, value in item.items():
        path = (*base, str(key))
        if key == "resources" and kind == "http":
            _resources(work, index, value)
        elif key == "additional_resources":
            if value:
                work.say(
                    path, "cannot-carry",
                    "a module's own HTTP resource is not served by our listeners",
                    todo="ask for it to be added to formulas/synapse",
                )
            else:
                work.say(path, "dropped-no-effect", "it is empty")
        elif key == "tls" and value:
            work.say(path, "replaced", "nginx ends TLS; our listeners are plain")
        elif key == "path":
            work.say(path, "replaced", "our listeners are ports, so that nginx may be elsewhere")
        elif key in _KNOWN:
            work.say(path, "replaced", "our own listeners take its place")
        else:
            unknown(work, path, _KNOWN)


def _resources(work: Work, index: int, value: Any) -> None:
    base = ("listeners", index, "resources")
    rows = value if isinstance(value, list) else [value]
    if not rows:
        work.say(base, "dropped-no-effect", "it serves nothing")
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("names"), list):
            work.say(
                (*base, number), "cannot-carry", "a resource must have a list of names",
                todo="write - names: [client, federation]",
            )
            continue
        for key in row:
            if key == "names":
                continue
            path = (*base, number, str(key))
            if key == "compress":
                work.say(path, "replaced", "nginx compresses; Synapse does not")
            else:
                work.say(path, "cannot-carry", "no Synapse knows this key here, and 1.163 stops")
        for name in row["names"]:
            _resource(work, (*base, number, "names", str(name)), str(name))


def _resource(work: Work, path: tuple[str | int, ...], name: str) -> None:
    if name in ("client", "federation") or name in _IMPLIED:
        work.say(path, "kept", "our listeners serve it")
        return
    reasons = {
        "webclient": ("Synapse ships no web client any more (1.53), and stops", "remove the name"),
        "replication": ("it is for workers, and what is adopted is one process", "remove the name"),
        "metrics": (*_SIDE_DOORS["metrics_port"], "remove the name"),
        "consent": (
            "our listeners do not serve the consent forms", "ask for it in formulas/synapse"
        ),
    }
    reason, todo = reasons.get(name, (f"no Synapse knows the resource {name!r}", "remove the name"))
    work.say(path, "cannot-carry", reason, todo=todo)


def _names(item: dict[str, Any]) -> set[str]:
    rows = item.get("resources")
    return {
        str(name)
        for row in (rows if isinstance(rows, list) else [])
        if isinstance(row, dict) and isinstance(row.get("names"), list)
        for name in row["names"]
    } & (keys.RESOURCES | {"webclient"})


def _reachable(addresses: list[str]) -> str:
    """An address at which a listener bound to these is reached from its own machine."""
    bound = [address for address in addresses if address]
    if not bound or {"0.0.0.0", "::", "127.0.0.1", "localhost"} & set(bound):
        return "127.0.0.1"
    return bound[0]


def _has_type(work: Work, kind: str) -> bool:
    return any(row.get("type") == kind for row in _rows(work))


def _rows(work: Work) -> list[dict[str, Any]]:
    rows = work.values.get("listeners")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
