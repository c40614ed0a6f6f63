"""Numbers of a service for Prometheus: counted by each of its processes, shown as their sums."""

from collections import defaultdict
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from serve.http.bodies import Admission
from serve.http.host import OK, Reply


class Metrics:
    """Hold what one process counts."""

    def __init__(self, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "taxafuse_requests", "requests by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "taxafuse_request_seconds", "from the first byte to the answer", ["route"], registry=self.registry
        )
        self._labelled = cache(  # looking labels up takes longer than counting
            lambda route, status: (self.requests.labels(route, str(status)), self.seconds.labels(route))
        )
        self.queries = Counter("taxafuse_queries", "specimens by outcome", ["outcome"], registry=self.registry)
        for name, text, read in (
            ("in_flight", "requests in flight", lambda: admission.requests),
            ("held_bytes", "bytes that requests in flight hold", lambda: admission.bytes),
            ("refused", "requests turned away because the service was full", lambda: admission.refused),
        ):
            Gauge(f"taxafuse_{name}", text, registry=self.registry).set_function(read)

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        requests, times = self._labelled(route, status)
        requests.inc()
        times.observe(seconds)

    def count(self, replies: list[Reply]) -> None:
        """Count the items of one answer."""
        for reply in replies:
            self.queries.labels("answered" if reply.status == OK else "unusable").inc()

    def text(self) -> str:
        """Return all numbers, in Prometheus' text format."""
        return generate_latest(self.registry).decode()


class _Families:
    """Metrics that are ready, where `generate_latest` expects a registry."""

    def __init__(self, families: list[Metric]) -> None:
        self.collect = lambda: families


def summed(pages: list[str]) -> str:
    """Add the pages of several processes up to one: equal names and labels are summed, times of creation left out."""
    families: dict[str, Metric] = {}
    values: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], float]] = defaultdict(lambda: defaultdict(float))
    for page in pages:
        for family in text_string_to_metric_families(page):
            if family.name.endswith("_created"):
                continue
            families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                values[family.name][sample.name, tuple(sorted(sample.labels.items()))] += sample.value
    for name, family in families.items():
        for (sample_name, labels), value in values[name].items():
            family.add_sample(sample_name, dict(labels), value)
    return generate_latest(_Families(list(families.values()))).decode()
