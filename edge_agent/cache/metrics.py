"""The tiers' counts for Prometheus, read when it asks: a hit in the process costs no counter of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakSet

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from edge_agent.cache.manager import EdgeCacheManager

_watched: WeakSet[EdgeCacheManager] = WeakSet()


def watch(manager: EdgeCacheManager) -> None:
    """Export this manager's figures while it lives."""
    _watched.add(manager)


class _CacheCollector(Collector):
    """Figures of all managers; a process has one."""

    def collect(self) -> Iterator[Metric]:
        """The families, with a sample for each tier that is set up."""
        requests = CounterMetricFamily(
            "primespark_cache_requests", "Gets by tier and result.", labels=["tier", "result"]
        )
        failures = CounterMetricFamily("primespark_cache_failures", "Calls a tier did not answer.", labels=["tier"])
        evictions = CounterMetricFamily("primespark_cache_evictions", "Entries let go for others.", labels=["tier"])
        held = GaugeMetricFamily("primespark_cache_bytes", "What a tier holds.", labels=["tier"])
        limit = GaugeMetricFamily("primespark_cache_limit_bytes", "The most it may hold.", labels=["tier"])
        entries = GaugeMetricFamily("primespark_cache_entries", "Its entries.", labels=["tier"])
        for tier in [tier for manager in list(_watched) for tier in manager.last_report()]:
            requests.add_metric([tier.tier, "hit"], tier.hits)
            requests.add_metric([tier.tier, "miss"], tier.misses)
            failures.add_metric([tier.tier], tier.failures)
            figures = tier.figures
            for family, value in (
                (evictions, figures.evictions), (held, figures.bytes), (limit, figures.limit_bytes),
                (entries, figures.entries),
            ):  # fmt: skip
                if value is not None:
                    family.add_metric([tier.tier], value)
        yield from (requests, failures, evictions, held, limit, entries)


REGISTRY.register(_CacheCollector())
