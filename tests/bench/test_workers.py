"""The plan, the worker files and nginx's configuration for 10, 100 and 1,000 workers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from saltworks import routing, worker_table, workers

from tests import cluster
from tests.bench import results
from tests.render import trees
from tests.render.conftest import nginx_binary, renderer
from tests.render.webserver import Server, make_certificate

__all__ = ["nginx_binary", "renderer"]

pytestmark = pytest.mark.bench

SIZES = (10, 100, 500, 1000)
#: Bounds: seconds for the largest, and how much longer for twice as many.
SECONDS, DOUBLING = 2.0, 2.2
#: Of each size the best of so many: what else the machine does only adds.
ROUNDS = 5

#: How many of each kind there are of 100; of 10 at least one of those that anybody has.
SHARES: Mapping[str, int] = {
    "sync": 40, "client": 18, "sender": 10, "federation-in": 10, "persister": 4, "writer": 2,
    "initial-sync": 4, "login": 2, "federation-out": 4, "pusher": 2, "media": 1, "background": 1,
    "user-directory": 1, "appservice": 1,
}


def counts(size: int) -> dict[str, int]:
    """So many workers, shared out as in a large cluster."""
    least = 1 if size >= 100 else 0
    found = {kind: max(share * size // 100, least) for kind, share in SHARES.items()}
    return {**found, "sync": found["sync"] + size - sum(found.values())}


def made(size: int) -> tuple[dict[str, float], dict[str, int], dict[str, object]]:
    """Seconds and bytes of each part, and nginx's data."""
    rows = cluster.members(counts(size))
    assert len(rows) == size
    begun = time.perf_counter()
    placed = cluster.placement(*rows)
    plan = workers.of(placed)
    shared = workers.shared_config(cluster.WORKER_MAP, placed, plan)
    planned = time.perf_counter()
    files = [yaml.dump(shared, Dumper=yaml.CSafeDumper)] + [
        yaml.dump(workers.process_config(row, plan), Dumper=yaml.CSafeDumper)
        for row in plan.processes.values()
    ]
    written = time.perf_counter()
    data = routing.nginx(plan)
    routed = time.perf_counter()
    seconds = {"plan": planned - begun, "files": written - planned, "routing": routed - written}
    return seconds, {"files": sum(map(len, files))}, data


def case_of(data: Mapping[str, object]) -> trees.Case:
    """The formula nginx with this routing."""
    (path,) = [path for sls, path in trees.sls_files().items() if sls == "nginx"]
    row = {"manage_server": True, "replaces": [], "routing": data, "door": {"target": "synapse"}}
    (case,) = trees.cases_for("nginx", path, {"default": {"bench": {"pillar": {"nginx": row}}}})
    return case


def test_a_thousand_workers_are_planned_in_two_seconds(
    renderer: trees.Renderer, nginx_binary: Path, tmp_path: Path
) -> None:
    worker_table.table()
    certificate = make_certificate(tmp_path)
    totals: dict[int, float] = {}
    table = []
    for size in SIZES:
        best: dict[str, float] = {}
        for _ in range(ROUNDS):
            seconds, sizes, data = made(size)
            case = case_of(data)
            begun = time.perf_counter()
            text = "".join(
                renderer.template(case, f"salt://nginx/files/{name}.conf.jinja", {})
                for name in ("routing", "site-synapse")
            )
            seconds["nginx"] = time.perf_counter() - begun
            for part, took in seconds.items():
                best[part] = min(took, best.get(part, took))
        totals[size] = sum(best.values())
        folder = tmp_path / str(size)
        folder.mkdir()
        server = Server(folder, nginx_binary, renderer, case, certificate)
        begun = time.perf_counter()
        done = server.test()
        tested = time.perf_counter() - begun
        assert done.returncode == 0, done.stderr
        parts = ("plan", "files", "routing", "nginx")
        table.append([
            str(size), *(f"{best[part] * 1000:.0f}" for part in parts),
            f"{totals[size] * 1000:.0f}", f"{sizes['files'] // 1024}", f"{len(text) // 1024}",
            f"{tested * 1000:.0f}",
        ])
    head = ["workers", "plan ms", "worker files ms", "routing ms", "nginx.conf ms", "sum ms",
            "worker files KiB", "nginx KiB", "nginx -t ms"]
    results.show("workers", "Plan, worker files and nginx for so many workers", head, table)
    assert totals[1000] <= SECONDS
    assert totals[1000] / totals[500] <= DOUBLING
