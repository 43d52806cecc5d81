"""Reading the hand-made nginx site in front of Synapse.

The tokenizer knows what nginx's own lexer knows: words, quotes, ``;``, ``{``, ``}``
and comments. Lua blocks are not understood.
"""

from __future__ import annotations

import fnmatch
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .work import Work

_WORD = re.compile(
    r"""(?P<space>\s+)|(?P<comment>\#[^\n]*)|(?P<mark>[;{}])
    |(?P<quoted>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|(?P<word>(?!["'])(?:\\.|\$\{[^}]*\}|[^\s;{}])+)""",
    re.VERBOSE | re.DOTALL,
)


@dataclass
class Directive:
    """One directive, with its block when it has one."""

    name: str
    args: list[str]
    file: str
    line: int
    block: list[Directive] | None = None

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass
class Site:
    """The public site as found.

    :param files: paths of the files that hold it, as nginx includes them.
    :param certificate: paths of certificate and key.
    :param others: server names that the same nginx serves for something else.
    """

    name: str = ""
    names: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    client_max_body_size: str = ""
    well_known: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    certificate: tuple[str, str] = ("", "")
    others: list[str] = field(default_factory=list)


class Broken(ValueError):
    """Text that is not an nginx configuration; its message names file and line."""


def parse(text: str, file: str) -> list[Directive]:
    """Parse one file of ``nginx -T``.

    :raises Broken: at an unbalanced brace, an open quote or an unfinished directive.
    """
    stack: list[list[Directive]] = [[]]
    words: list[str] = []
    line = start = 1
    position = 0
    while position < len(text):
        match = _WORD.match(text, position)
        if match is None:
            raise Broken(f"{file}:{line}: a quote is not closed")
        kind, token = match.lastgroup, match.group()
        position = match.end()
        if kind in ("word", "quoted"):
            if not words:
                start = line
            words.append(_unquoted(token) if kind == "quoted" else token)
        elif kind == "mark" and token == "}":
            if words or len(stack) == 1:
                raise Broken(f"{file}:{line}: '}}' is not expected here")
            stack.pop()
        elif kind == "mark":
            if not words:
                if token == "{":
                    raise Broken(f"{file}:{line}: '{{' is not expected here")
            else:
                row = Directive(words[0], words[1:], file, start, [] if token == "{" else None)
                stack[-1].append(row)
                if row.block is not None:
                    stack.append(row.block)
                words = []
        line += token.count("\n")
    if words or len(stack) > 1:
        raise Broken(f"{file}:{line}: the file ends inside a directive or a block")
    return stack[0]


def adopt(work: Work, ports: set[int]) -> Site:
    """Find the site that passes to Synapse and give verdicts on what it does.

    :param ports: TCP ports on which the Synapse found answers.
    """
    texts: Mapping[str, str] = work.found.get("nginx") or {}
    site = Site()
    if not texts:
        work.refuse(
            "nginx", "no configuration of nginx was found on this machine",
            "saltworks takes over from an nginx in front of Synapse: install one, or move what "
            "ends TLS now to it",
        )
        return site
    trees: dict[str, list[Directive]] = {}
    for path, text in texts.items():
        try:
            trees[path] = parse(text, path)
        except Broken as error:
            work.refuse("nginx", str(error), "correct it until nginx -t is content")
    reader = _Reader(work, trees, ports)
    reader.read(site)
    return site


class _Reader:
    def __init__(self, work: Work, trees: dict[str, list[Directive]], ports: set[int]) -> None:
        self.work, self.trees, self.ports = work, trees, ports
        self.upstreams = {
            row.args[0]: [server.args[0] for server in row.block or [] if server.name == "server"]
            for row in self._everywhere("upstream")
            if row.args
        }

    def read(self, site: Site) -> None:
        servers = list(self._everywhere("server"))
        ours = [row for row in servers if self._passes(row)]
        if not ours:
            self.work.refuse(
                "nginx", "no server block passes requests to Synapse's port "
                f"({', '.join(map(str, sorted(self.ports))) or 'none'})",
                "let the public site proxy_pass to http://127.0.0.1:<port>, without a variable",
            )
            return
        site.names = _unique(name for row in ours for name in self._names(row))
        site.name = self._choose_name(site.names)
        # A redirect from http belongs to the site as well.
        belonging = [
            row for row in servers
            if row in ours or (self._names(row) and set(self._names(row)) <= set(site.names))
        ]
        site.files = _unique(row.file for row in belonging)
        rest = [row for row in servers if row not in belonging]
        site.others = _unique(name for row in rest for name in self._names(row))
        for row in belonging:
            self._server(row, site, row in ours)
        site.ports = sorted(set(site.ports))
        self._shared_files(site, rest)
        self._more_names(site)
        self._body_size(site, ours)
        self._certificate(site)

    def _everywhere(self, name: str) -> Iterator[Directive]:
        for tree in self.trees.values():
            for row in tree:
                if row.name == name and row.block is not None:
                    yield row
                elif row.name == "http" and row.block is not None:
                    yield from (
                        inner
                        for inner in row.block
                        if inner.name == name and inner.block is not None
                    )

    def _inside(self, block: list[Directive], depth: int = 0) -> Iterator[Directive]:
        """The directives of a block, its includes in place."""
        for row in block:
            if row.name == "include" and row.args and depth < 8:
                pattern = posixpath.join("/etc/nginx", row.args[0])
                for path, tree in self.trees.items():
                    if fnmatch.fnmatchcase(path, pattern):
                        yield from self._inside(tree, depth + 1)
            else:
                yield row

    def _names(self, server: Directive) -> list[str]:
        return [
            name
            for row in self._inside(server.block or [])
            if row.name == "server_name"
            for name in row.args
            if name not in ("_", "")
        ]

    def _passes(self, block: Directive) -> bool:
        return any(
            self._is_synapse(row) or (row.block is not None and self._passes(row))
            for row in self._inside(block.block or [])
        )

    def _is_synapse(self, row: Directive) -> bool:
        if row.name != "proxy_pass" or not row.args:
            return False
        match = re.match(r"^https?://(\[[^\]]+\]|[^/:]+)(?::(\d+))?", row.args[0])
        if not match:
            return False
        host, port = match.group(1), int(match.group(2) or 80)
        if host in self.upstreams:
            return any(
                self._is_local(*(server.rpartition(":")[::2])) for server in self.upstreams[host]
            )
        return self._is_local(host, str(port))

    def _is_local(self, host: str, port: str) -> bool:
        local = {"127.0.0.1", "localhost", "[::1]", str(self.work.found.get("address"))}
        return host in local and port.isdigit() and int(port) in self.ports

    def _choose_name(self, names: list[str]) -> str:
        base = self.work.values.get("public_baseurl")
        host = re.sub(r"^https?://([^/:]+).*$", r"\1", base) if isinstance(base, str) else ""
        plain = [name for name in names if re.match(r"^[a-z0-9][a-z0-9.-]*$", name)]
        return host if host in plain else (plain[0] if plain else "")

    def _server(self, server: Directive, site: Site, ours: bool) -> None:
        details = []
        for row in self._inside(server.block or []):
            if row.name == "listen":
                self._listen(row, site, ours)
            elif row.name == "location":
                self._location(row, site)
            elif row.name == "ssl_certificate" and ours:
                site.certificate = (row.args[0], site.certificate[1])
                details.append(row)
            elif row.name == "ssl_certificate_key" and ours:
                site.certificate = (site.certificate[0], row.args[0])
                details.append(row)
            elif row.name in _GUARDS and not (row.name in ("return", "rewrite") and not ours):
                self._lost(row, f"{row.name} {' '.join(row.args)}", _GUARDS[row.name])
            else:
                details.append(row)
        self.work.say(
            f"nginx {server.place} server", "replaced",
            f"our site takes its place, with its own TLS, log and proxy settings ({len(details)})",
            where=server.place,
        )

    def _listen(self, row: Directive, site: Site, ours: bool) -> None:
        text = row.args[0] if row.args else ""
        port = text.rpartition(":")[2]
        number = int(port) if port.isdigit() else 80
        if "ssl" in row.args[1:]:
            site.ports.append(number)
            if "proxy_protocol" in row.args:
                self._lost(row, f"listen {text} proxy_protocol", "our site speaks plain TLS only")
            return
        if text.startswith("unix:"):
            self._lost(row, f"listen {text}", "our site listens on ports only")
            return
        what = "passes to Synapse without TLS" if ours else "redirects http to https"
        self._lost(
            row, f"listen {text}", f"it {what}; our site serves https only",
            "keep the redirect, if wanted, in a site file of its own",
        )

    def _location(self, row: Directive, site: Site) -> None:
        path = " ".join(row.args)
        inside = list(self._inside(row.block or []))
        key = f"nginx {row.place} location {path}"
        kind = _WELL_KNOWN.get(_plain(path))
        if kind:
            self._well_known(row, key, kind, inside, site)
        elif any(self._is_synapse(inner) for inner in inside):
            guards = [inner for inner in inside if inner.name in _GUARDS and inner.name != "return"]
            for inner in guards:
                self._lost(inner, f"{inner.name} {' '.join(inner.args)}", _GUARDS[inner.name])
            self._proxied(row, key, path)
            for inner in inside:
                if inner.name == "client_max_body_size":
                    site.client_max_body_size = inner.args[0]
        elif any(inner.name == "return" and inner.args[:1] == ["404"] for inner in inside):
            self.work.say(key, "replaced", "our site has nothing there either", where=row.place)
        else:
            hint = "serve it under another name, from a site file of its own"
            if "acme-challenge" in path:
                hint = "let the certificate be renewed in another way (by DNS, or elsewhere)"
            self._lost(row, f"location {path}", "our site serves Matrix and nothing else", hint)

    def _proxied(self, row: Directive, key: str, path: str) -> None:
        plain = _plain(path)
        parts = [part for part in re.split(r"[()|?:*.+]+", plain) if part.strip("/")]
        ours = all(part.lstrip("/").startswith(("_matrix", "_synapse/client")) for part in parts)
        if plain == "/":
            self.work.say(
                key, "replaced", "our site passes /_matrix and /_synapse/client, the rest is 404",
                where=row.place,
            )
        elif ours:
            self.work.say(key, "kept", "our site passes it to Synapse", where=row.place)
        else:
            self.work.say(
                key, "cannot-carry",
                "our site passes /_matrix and /_synapse/client to Synapse and nothing else: "
                "neither its admin API nor other paths are shown to the world",
                todo="use it from the synapse machine", where=row.place,
            )

    def _well_known(
        self, row: Directive, key: str, kind: str, inside: list[Directive], site: Site
    ) -> None:
        answer = next((inner for inner in inside if inner.name == "return"), None)
        if answer is not None and answer.args[:1] == ["200"] and len(answer.args) > 1:
            try:
                content = json.loads(answer.args[1])
            except ValueError as error:
                self._lost(
                    row, key.split(" ", 2)[2], f"what it returns is not JSON: {error}", "correct it"
                )
                return
            if isinstance(content, dict):
                site.well_known[kind] = content
                self.work.say(
                    key, "kept", "the same answer", new_key=f"public.well_known.{kind}",
                    where=row.place,
                )
                return
        if any(self._is_synapse(inner) for inner in inside):
            self.work.say(key, "kept", "our site passes it to Synapse", where=row.place)
            return
        self._lost(
            row, key.split(" ", 2)[2], "its answer is a file that was not read",
            "write it as: return 200 '{...}'; and adopt again",
        )

    def _lost(self, row: Directive, what: str, reason: str, todo: str = "") -> None:
        self.work.say(
            f"nginx {row.place} {what}".strip(), "cannot-carry", reason, todo=todo, where=row.place
        )

    def _shared_files(self, site: Site, rest: list[Directive]) -> None:
        for path in site.files:
            names = _unique(n for row in rest if row.file == path for n in self._names(row))
            strangers = [row for row in rest if row.file == path]
            if strangers:
                self.work.refuse(
                    strangers[0].place,
                    "the file of the Matrix site also serves "
                    f"{', '.join(names) or 'another site'}, which would go with it",
                    "move that server block into a file of its own",
                )
            if not fnmatch.fnmatchcase(path, "/etc/nginx/*/*"):
                self.work.refuse(
                    path, "the Matrix site stands in nginx's main file",
                    "move its server block into a file in /etc/nginx/sites-enabled or conf.d",
                )

    def _more_names(self, site: Site) -> None:
        for name in site.names:
            if name != site.name:
                self.work.say(
                    f"nginx server_name {name}", "cannot-carry",
                    f"our site has one public name, {site.name or 'none'}",
                    todo="serve the other names from a site file of their own that passes on to it",
                )

    def _body_size(self, site: Site, ours: list[Directive]) -> None:
        if not site.client_max_body_size:
            rows = (row for tree in self.trees.values() for row in tree)
            blocks = [*ours, *(row for row in rows if row.name == "http")]
            sizes = [
                row.args[0]
                for block in blocks
                for row in self._inside(block.block or [])
                if row.name == "client_max_body_size" and row.args
            ]
            site.client_max_body_size = sizes[0] if sizes else "1m"
        limit = _bytes(str(self.work.values.get("max_upload_size") or "50M"))
        allowed = _bytes(site.client_max_body_size)
        if limit and allowed and allowed < limit:
            self.work.warn(
                "nginx client_max_body_size",
                f"{site.client_max_body_size} is less than Synapse's max_upload_size",
                "raise public.client_max_body_size, if larger uploads should pass",
            )

    def _certificate(self, site: Site) -> None:
        for path, name, what in (
            (site.certificate[0], "tls_certificate", "certificate"),
            (site.certificate[1], "tls_key", "private key"),
        ):
            text = self.work.file(path) if path else None
            if text and "-----BEGIN" in text:
                self.work.secret(name, text)
            elif path:
                self.work.refuse(
                    path, f"the {what} of the public name could not be read",
                    "make it readable for root, in PEM form",
                )
            else:
                self.work.refuse(
                    site.files[0] if site.files else "nginx",
                    f"the site that passes to Synapse names no {what}",
                    "end TLS in this nginx",
                )


_GUARDS = {
    "allow": "it restricts who may come in, and our site does not",
    "deny": "it restricts who may come in, and our site does not",
    "auth_basic": "it asks for a password, and our site does not",
    "auth_request": "it asks another service, and our site does not",
    "limit_req": "our site does not limit rates",
    "limit_conn": "our site does not limit connections",
    "ssl_client_certificate": "it asks for client certificates, and our site does not",
    "rewrite": "our site rewrites nothing",
    "return": "our site answers by Synapse",
    "if": "our site decides nothing by condition",
}

_WELL_KNOWN = {"/.well-known/matrix/server": "server", "/.well-known/matrix/client": "client"}


def _plain(path: str) -> str:
    return re.sub(r"^(=|~\*?|\^~)\s*", "", path).lstrip("^").rstrip("$").replace("\\", "")


def _unquoted(token: str) -> str:
    return token[1:-1].replace("\\" + token[0], token[0])


def _bytes(text: str) -> int:
    match = re.match(r"^(\d+)([kmgKMG]?)$", text)
    if not match:
        return 0
    powers = {"": 0, "k": 1, "m": 2, "g": 3}
    return int(match.group(1)) * int(1024 ** powers[match.group(2).lower()])


def _unique(rows: Iterator[str] | Any) -> list[str]:
    return list(dict.fromkeys(rows))
