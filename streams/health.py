"""`/livez`, `/readyz` and `/metrics` of the stream worker."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from primespark.core.clock import wall_clock_ms
from primespark.core.settings import Settings
from primespark.errors import UnavailableError
from streams.worker import StreamWorker

_Family = CounterMetricFamily | GaugeMetricFamily


class StreamsCollector(Collector):
    """Renders the worker's counts as Prometheus metrics."""

    def __init__(self, worker: StreamWorker) -> None:
        self._worker = worker

    def collect(self) -> Iterator[Metric]:
        """All metrics at this moment."""
        counts = self._worker.statistics
        yield _counter("messages", "Messages taken in", counts.messages)
        yield _counter("events", "Rows taken in", counts.rows)
        yield _counter("routed", "Rows taken from the repartition topic", counts.routed)
        yield _counter("unclaimed", "Rows there of rules that this worker does not have", self._worker.engine.unclaimed)
        yield _counter("window_results", "Results of windows, late updates included", counts.results)
        yield _counter("duplicates", "Rows ignored as already counted", self._worker.engine.duplicates)
        yield _counter("poison", "Messages sent to the dead-letter topic", counts.poison)
        yield _counter("gaps", "Messages refused because records before them were not seen", counts.gaps)
        yield _counter("delivery_failures", "Failed deliveries, each repeated", counts.failures)
        yield _counter("rebalances", "Assignments of partitions", counts.rebalances)
        yield _counter("snapshots", "Snapshots written", counts.snapshots)
        yield _gauge("snapshot_bytes", "Size of the largest of the last snapshots", counts.snapshot_bytes)
        age_s = 0.0 if counts.snapshot_at is None else time.time() - counts.snapshot_at
        yield _gauge("snapshot_age_seconds", "Time since the last snapshot", age_s)
        text = "Records of workers whose time was over in the snapshots of the partitions at hand, as far as read"
        yield _gauge("snapshots_refused", text, counts.snapshots_refused)
        yield from self._by_rule()
        yield from self._standing()

    def _by_rule(self) -> Iterator[Metric]:
        for name, text in (
            ("late_dropped", "Records after their window was forgotten"),
            ("invalid", "Records without a usable time or value"),
            ("ungrouped", "Records without a usable group field"),
            ("filtered", "Records that a filter of the rule left out"),
            ("future", "Records too far ahead of their arrival"),
        ):
            family = CounterMetricFamily(f"primespark_streams_{name}", text, labels=["rule_id"])
            for rule_id, counters in self._worker.engine.counters.items():
                family.add_metric([rule_id], getattr(counters, name))
            yield family

    def _standing(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "primespark_streams_watermark_lag_seconds", "How far the watermark is behind the clock", labels=["rule_id"]
        )
        windows = GaugeMetricFamily(
            "primespark_streams_windows_open", "Windows with records that have not fired", labels=["rule_id"]
        )
        for rule_id, (watermark_ms, is_open) in self._worker.engine.standing().items():
            windows.add_metric([rule_id], is_open)
            if watermark_ms is not None:
                lag.add_metric([rule_id], (wall_clock_ms() - watermark_ms) / 1000)
        yield from (lag, windows)


@asynccontextmanager
async def health_page(settings: Settings, worker: StreamWorker) -> AsyncIterator[None]:
    """Serve the three routes while the context is open.

    Raises:
        UnavailableError: The address is in use.
    """
    registry = CollectorRegistry()
    registry.register(StreamsCollector(worker))

    async def livez(_: web.Request) -> web.Response:
        return web.json_response({"status": "alive"})

    async def readyz(_: web.Request) -> web.Response:
        causes = worker.not_ready
        body = {"status": "not_ready", "causes": causes} if causes else {"status": "ready"}
        return web.json_response(body, status=503 if causes else 200)

    async def metrics(request: web.Request) -> web.Response:
        if not (settings.security.open_health and _is_loopback(request.remote)):
            problem = {"title": "metrics are open to this machine only", "status": 403, "code": "forbidden"}
            return web.json_response(problem, status=403, content_type="application/problem+json")
        return web.Response(body=generate_latest(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes([web.get("/livez", livez), web.get("/readyz", readyz)])
    if settings.monitoring.metrics:
        app.add_routes([web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    address = settings.cloud.streams
    try:
        try:
            await web.TCPSite(runner, address.host, address.port).start()
        except OSError as error:
            raise UnavailableError(
                f"cannot listen on {address.host}:{address.port}: {error.strerror}", remedy="set cloud.streams.port"
            ) from None
        yield
    finally:
        await runner.cleanup()


def _is_loopback(remote: str | None) -> bool:
    try:
        return remote is not None and ipaddress.ip_address(remote).is_loopback
    except ValueError:
        return False


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"primespark_streams_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"primespark_streams_{name}", text, value=value)
