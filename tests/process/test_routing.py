"""Every request that the release knows goes to a process that serves it, in nginx as in the table.

The release's own main and worker apps are made and asked which endpoints they have; so a new
release is checked by these tests, too.
"""

from __future__ import annotations

import json
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from saltworks import pki, routing, synapse_config, workers
from saltworks.plan import CONFIG_DIR, DATA_DIR
from saltworks.routing import Request

from tests import cluster
from tests.lab.driver import PROJECT
from tests.process.front_door import FrontDoor
from tests.process.worker_front import TABLE, Answer, certificate, front, plan, stub
from tests.process.worker_stub import Workers
from tests.render.conftest import nginx_binary, renderer, synapse_release

__all__ = ["certificate", "front", "nginx_binary", "plan", "renderer", "stub", "synapse_release"]

#: Worker-capable endpoints of 1.163.2 beside those of administrators (peers.md).
KNOWN = 155

#: Makes a process as its app does at a start, its listeners' resources included, and prints which
#: endpoints (method, pattern) these have registered.
PROGRAM = """
import json, sys
from synapse.app import _base, generic_worker, homeserver
from synapse.config.homeserver import HomeServerConfig
from synapse.http.server import JsonResource
found, honest = [], JsonResource.register_paths
def register_paths(self, method, path_patterns, callback, servlet_classname):
    found.extend([method, pattern.pattern] for pattern in path_patterns)
    return honest(self, method, path_patterns, callback, servlet_classname)
JsonResource.register_paths = register_paths
_base.listen_http = homeserver.listen_http = lambda *args, **kwargs: []
files = sys.argv[1:]
config = HomeServerConfig.load_config("servlets", [w for file in files for w in ("-c", file)])
if config.worker.worker_app is None:
    hs = homeserver.SynapseHomeServer(config.server.server_name, config=config)
    hs.setup()
    for listener in config.server.listeners:
        hs._listener_http(config, listener)
else:
    hs = generic_worker.GenericWorkerServer(config.server.server_name, config=config)
    hs.setup()
    for listener in config.worker.worker_listeners:
        hs._listen_http(listener)
json.dump(sorted(map(list, set(map(tuple, found)))), sys.stdout)
"""

Endpoints = frozenset[tuple[str, str]]


def samples(pattern: str) -> list[str]:
    """Paths that a pattern of Synapse's fits: every alternative, with and without what may be left
    out."""
    text = pattern.lstrip("^").rstrip("$")
    # Media have ids of their own sort when a preview of a URL has brought them.
    texts = [text, re.sub(r"\(\?P<media_id>[^)]*\)", "2026-11-28_x1", text)]
    texts = [re.sub(r"\(\?P<\w+>", "(", one) for one in texts]
    for part in (r"[\w\.]*", "[^/]*", "[^/]+", ".*"):
        texts = [one.replace(part, "x1") for one in texts]
    while any("(" in one for one in texts):
        texts = [way for one in texts for way in _innermost(one)]
    made = [way for one in texts for way in _optional(one.replace("\\.", "."))]
    assert all(re.search(pattern, path) for path in made), pattern
    return sorted(set(made))


def _innermost(text: str) -> list[str]:
    found = re.search(r"\(([^()]*)\)(\?)?", text)
    if found is None:
        return [text]
    ways = found[1].split("|") + ([""] if found[2] else [])
    return [text[: found.start()] + way + text[found.end() :] for way in ways]


def _optional(text: str) -> list[str]:
    return [text[:-2], text[:-1]] if text.endswith("/?") else [text]


@pytest.fixture(scope="module")
def registered(
    synapse_release: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Endpoints]:
    """What main has, and a process of each kind, as the plan configures it."""
    folder = tmp_path_factory.mktemp("servlets")
    plan = workers.of(cluster.placement(*cluster.members(cluster.EACH)))
    settings = {
        "server_name": "example.org",
        "report_stats": False,
        "database": {"name": "sqlite3", "args": {"database": ":memory:"}},
        "signing_key_path": f"{folder}/signing.key",
        "media_store_path": f"{folder}/media",
        "macaroon_secret_key": "x",
        "trusted_key_servers": [],
        "redis": {"enabled": True},
        "instance_map": {name: {"host": "127.0.0.1", "port": 9093} for name in
                         ("main", *plan.processes)},
        "stream_writers": {name: list(names) for name, names in plan.streams.items()},
    }
    listeners = [{"port": 8008, "type": "http", "resources": [{"names": ["client", "federation"]}]}]
    main = folder / "homeserver.yaml"
    main.write_text(yaml.safe_dump({**settings, "listeners": listeners}))
    _run(synapse_release, "-m", "synapse.app.homeserver", "-c", str(main), "--generate-keys")
    found = {"main": _servlets(synapse_release, main)}
    by_resources: dict[tuple[bool, tuple[str, ...]], Endpoints] = {}
    for row in plan.processes.values():
        kind = TABLE.kinds[row.kind]
        media = "media" in kind.resources
        shared, own = folder / f"shared-{media}.yaml", folder / f"{row.name}.yaml"
        shared.write_text(yaml.safe_dump({**settings, "enable_media_repo": media}))
        config = workers.process_config(row, plan)
        config.pop("worker_log_config")
        own.write_text(yaml.safe_dump(config))
        shape = (media, kind.resources)
        if shape not in by_resources:
            by_resources[shape] = _servlets(synapse_release, shared, own)
        found[row.kind] = by_resources[shape]
    return found


def _servlets(release: Path, *files: Path) -> Endpoints:
    rows = json.loads(_run(release, "-c", PROGRAM, *map(str, files)))
    # Those for Synapse's own processes are at ports that nginx does not know.
    return frozenset(
        (method, pattern) for method, pattern in rows if "/_synapse/replication/" not in pattern
    )


def _run(release: Path, *words: str) -> str:
    done = subprocess.run(
        [str(release / "bin/python"), *words], capture_output=True, text=True, timeout=120,
        check=False, cwd=release,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def capable(registered: dict[str, Endpoints]) -> Endpoints:
    """What some worker serves."""
    return frozenset().union(*(rows for name, rows in registered.items() if name != "main"))


def every_request(registered: dict[str, Endpoints]) -> list[tuple[str, str]]:
    """A request of each shape that the release knows."""
    rows = {
        (method, path)
        for method, pattern in frozenset().union(*registered.values())
        for path in samples(pattern)
    }
    syncs = {
        (method, f"{path}?{query}") for method, path in rows if path.endswith("/sync")
        for query in (
            "since=s1_2&timeout=30000", "timeout=30000&since=s1", "full_state=true&since=s1",
            "since=&timeout=0", "filter=%7B%7D",
        )
    }
    heads = {("HEAD", path) for method, path in rows if method == "GET"}
    return sorted(rows | syncs | heads)


def refused(registered: dict[str, Endpoints], kind: str, method: str, uri: str) -> bool:
    path, get = uri.partition("?")[0], {"HEAD": "GET"}.get(method, method)
    return not any(known == get and re.search(pattern, path) for known, pattern in registered[kind])


def test_every_endpoint_that_a_worker_can_serve_goes_to_one_that_serves_it(
    registered: dict[str, Endpoints], plan: workers.Workers
) -> None:
    rows = capable(registered)
    assert rows <= registered["main"]
    assert len([row for row in rows if "/_synapse/admin" not in row[1]]) >= KNOWN
    to_main, wrong = [], []
    for method, pattern in rows:
        for path in samples(pattern):
            to = routing.route(Request(method, path), plan)
            if to.pool == "main":
                to_main.append(f"{method} {path}")
            wrong += [
                f"{method} {path} to {row.name}" for row in to.servers
                if refused(registered, row.kind, method, path)
            ]
    assert (to_main, wrong) == ([], [])


def test_no_request_goes_to_a_process_that_refuses_it(
    registered: dict[str, Endpoints], plan: workers.Workers
) -> None:
    wrong = []
    for method, uri in every_request(registered):
        to = routing.route(Request(method, uri), plan)
        wrong += [
            f"{method} {uri} to {row.name}" for row in to.servers
            if refused(registered, row.kind, method, uri)
        ]
    assert wrong == []


def test_no_kind_serves_all_and_no_endpoint_of_the_table_is_of_yesterday(
    registered: dict[str, Endpoints],
) -> None:
    lines = [f"{method} {uri}" for method, uri in every_request(registered)]
    unused = [
        row.pattern for row in TABLE.endpoints()
        if row.methods != ("OPTIONS",)
        and not any(re.match(row.pattern, line) for line in lines)
    ]
    assert unused == []


def test_the_release_accepts_the_files_that_the_plan_makes(
    synapse_release: Path, tmp_path: Path
) -> None:
    cmap = {**cluster.WORKER_MAP, "synapse": {
        **cluster.WORKER_MAP["synapse"], "modules": [], "loopback": [],
        "settings": {**cluster.WORKER_MAP["synapse"]["settings"], "report_stats": False},
    }}
    placed = cluster.placement(*cluster.members(cluster.EACH))
    plan = workers.of(placed)
    (tmp_path / "certificates").mkdir()
    authority = pki.make_authority("tests", datetime.now(UTC))[0]
    (tmp_path / "certificates/saltworks.pem").write_text(authority)
    (tmp_path / "log.yaml").write_text("version: 1\n")
    (tmp_path / "signing.key").write_text("ed25519 a_abcd " + "A" * 43 + "\n")
    settings = synapse_config.homeserver_config(cmap, placed, "synapse", str)
    files = {"main": [_write(tmp_path, "homeserver", settings)]}
    for row in plan.processes.values():
        media = row.kind == "media"
        shared = synapse_config.worker_settings(cmap, placed, plan, str, media=media)
        # The formula has it read alone, too, before the workers' own files.
        files[f"shared, media {media}"] = [_write(tmp_path, f"shared-{media}", shared)]
        own = _write(tmp_path, row.name, workers.process_config(row, plan))
        files[row.name] = [*files[f"shared, media {media}"], own]
    said = {name: _checked(synapse_release, paths) for name, paths in files.items()}
    assert {name: text for name, text in said.items() if text} == {}
    # It would say so: without its place in the map no writer is accepted.
    broken = {**settings, "instance_map": {"main": settings["instance_map"]["main"]}}
    assert "instance_map" in _checked(synapse_release, [_write(tmp_path, "broken", broken)])


def _write(folder: Path, name: str, config: Any) -> Path:
    path = folder / f"{name}.yaml"
    text = yaml.safe_dump(config).replace(CONFIG_DIR, str(folder))
    path.write_text(text.replace(DATA_DIR, str(folder)))
    return path


def _checked(release: Path, files: list[Path]) -> str:
    """What the release says against configuration files, as the formula asks it."""
    plugins = [str(PROJECT / place) for place in ("formulas/synapse/files/plugins",
                                                  "formulas/media/files")]
    done = subprocess.run(
        [str(release / "bin/python"), "-m", "synapse.config",
         *(word for path in files for word in ("-c", str(path)))],
        capture_output=True, text=True, timeout=60, check=False, cwd=files[0].parent,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(plugins)},
    )
    return done.stdout + done.stderr if done.returncode else ""


def test_nginx_and_the_table_agree_about_every_request(
    registered: dict[str, Endpoints], plan: workers.Workers, front: FrontDoor, stub: Workers
) -> None:
    wrong = []
    for method, uri in every_request(registered):
        if uri.startswith("/_synapse/") and not uri.startswith("/_synapse/client"):
            # The public site has none of the administrators' endpoints.
            continue
        to = routing.route(Request(method, uri), plan)
        before = len(stub.seen)
        answer = Answer(front, method, uri)
        wanted = {row.name for row in to.servers} or {"main"}
        if answer.by not in wanted:
            wrong.append(f"{method} {uri}: {answer.by}, not one of {wanted}")
        if to.servers and [row.line for row in stub.seen[before:]] != [f"{method} {uri}"]:
            wrong.append(f"{method} {uri} arrived as {stub.seen[before:]}")
    assert wrong == []
