"""What the service counts, for Prometheus. Labels come from our routes and reasons, never from a request."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from starlette.types import Scope

disable_created_metrics()  # when each series began: as many rows again, which nobody reads
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2, 0.35, 0.5, 1, 2, 5, 10, 20)


class Metrics:
    """One service's counters, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("wiki_assets_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "wiki_assets_request_seconds",
            "Seconds from a request's head to the end of its answer",
            ["path"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.refused = Counter(
            "wiki_assets_refused", "Requests refused: rate, size, slow, timeout, overload", ["reason"],
            registry=self.registry,
        )  # fmt: skip
        self.waiting = Gauge("wiki_assets_searches_waiting", "Searches that wait for a worker", registry=self.registry)
        self.running = Gauge("wiki_assets_searches_running", "Searches that run", registry=self.registry)
        ProcessCollector(registry=self.registry)

    def observe(self, scope: "Scope", status: int, seconds: float) -> None:
        """Count one answered request. The path is the route's template; addresses that are none share one label."""
        path = getattr(scope.get("route"), "path", None) or "none"
        self.requests.labels(path, str(status or "dropped")).inc()
        self.seconds.labels(path).observe(seconds)

    def show_published(self, wikis: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        """Show what is published, as it is when the metrics are read."""
        self.registry.register(_Published(wikis))

    def text(self) -> bytes:
        """Everything, as Prometheus reads it."""
        return generate_latest(self.registry)


class _Published:
    """The published builds, one row a wiki: its value is the number of passages."""

    def __init__(self, wikis: Callable[[], Iterable[Mapping[str, Any]]]) -> None:
        self._wikis = wikis

    def describe(self) -> list[GaugeMetricFamily]:
        return []  # nothing is read while the registry is set up

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(
            "wiki_assets_published_passages", "Passages that can be found", labels=["wiki", "snapshot", "build"]
        )
        for pointer in self._wikis():
            family.add_metric([pointer["wiki"], pointer["snapshot"], str(pointer["build"])], pointer["passages"])
        return [family]
