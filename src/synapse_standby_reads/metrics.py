"""What Prometheus is told, by Synapse's own metrics listener."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from .router import Router

#: How an interaction may end. ``standby``: it ran there. All others ran on the primary.
OUTCOMES = (
    "standby",  # served
    "writer", "primary_only", "not_listed", "single", "isolation",  # not meant for a standby
    "no_standby", "connection_wanted", "barrier",  # there was none, or no primary to compare with
    "learn", "lag", "timeline", "ahead", "conflict", "connection", "sql",  # tried, and run again
)

INTERACTIONS = Counter(
    "synapse_standby_reads_interactions", "Interactions, by how they ended", ["outcome"]
)
SECONDS = Counter(
    "synapse_standby_reads_seconds", "Seconds inside interactions, tries included", ["outcome"]
)
FENCES = Counter(
    "synapse_standby_reads_fences", "Reads of standbys, by what their fence took", ["how"]
)


class Collector:
    """What the routers of this process know of themselves when they are asked."""

    def __init__(self) -> None:
        self._routers: list[Router] = []
        REGISTRY.register(self)

    def add(self, router: Router) -> None:
        self._routers.append(router)

    def collect(self) -> Iterator[Metric]:
        prefix = "synapse_standby_reads_"
        yield counter(f"{prefix}fetches", "Questions to the primary where it is", (
            ((), router.index.fetches) for router in self._routers))
        yield gauge(f"{prefix}learnt_writers", "Interactions that were seen to write", (
            ((), len(router.writers)) for router in self._routers))
        yield gauge(f"{prefix}bad_file", "Whether standbys_file is refused as it is", (
            ((), router.standbys.bad_file) for router in self._routers))
        each = [standby for router in self._routers for standby in router.standbys]
        yield counter(f"{prefix}watchdog_kills", "Connections to a silent standby that were cut", (
            ((standby.name,), standby.kills) for standby in each))
        yield gauge(f"{prefix}breaker", "0 closed, 1 one interaction tries, 2 open", (
            ((standby.name,), standby.breaker_state()) for standby in each))
        yield gauge(f"{prefix}ready", "Whether it is a standby of the primary's timeline", (
            ((standby.name,), standby.is_ == "ready") for standby in each))


def gauge(
    name: str, help: str, rows: Iterable[tuple[tuple[str, ...], float]]
) -> GaugeMetricFamily:
    """A family with the label ``standby`` where a row has one; rows of the same label add up."""
    found = _added(rows)
    made = GaugeMetricFamily(name, help, labels=["standby"] if any(found) and found else [])
    for labels, value in found.items():
        made.add_metric(labels, value)
    return made


def counter(
    name: str, help: str, rows: Iterable[tuple[tuple[str, ...], float]]
) -> CounterMetricFamily:
    """As :func:`gauge`."""
    found = _added(rows)
    made = CounterMetricFamily(name, help, labels=["standby"] if any(found) and found else [])
    for labels, value in found.items():
        made.add_metric(labels, value)
    return made


def _added(
    rows: Iterable[tuple[tuple[str, ...], float]]
) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for labels, value in rows:
        found[labels] = found.get(labels, 0.0) + float(value)
    return found


COLLECTOR = Collector()
