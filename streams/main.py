"""`primespark streams`: one stream worker in this process, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog

from primespark.core.logging import configure_logging, get_logger
from primespark.core.settings import KafkaSettings, Settings
from primespark.errors import ConfigurationError, UnavailableError
from primespark.windows.engine import WindowEngine
from primespark.windows.live_rules import configured_rules
from primespark.windows.rules import AggregationRule

_STOP_TIMEOUT_S = 2.0
_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_MAX_BATCH_BYTES = 128 * 1024

log = get_logger(__name__)


def run(settings: Settings) -> None:
    """Run the worker; returns after SIGTERM or SIGINT with everything taken in persisted.

    Raises:
        MissingDependencyError: Faust is not installed.
        ConfigurationError: No broker or store is set, or the rules cannot work.
        UnavailableError: The broker does not answer at start, or the worker broke down.
    """
    configure_logging(settings.global_, "streams")
    structlog.contextvars.bind_contextvars(worker=settings.cloud.streams.worker_id)
    for noisy in ("faust", "mode"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    prepare(settings)
    collect_seldom()
    asyncio.run(_serve_until_signal(settings, configured_rules(settings)))


def collect_seldom() -> None:
    """Look for garbage less often: records come by the thousand and go without cycles, and so does a loaded state."""
    # Looking took a third of the time of decoding.
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 20, 20)


def check(settings: Settings) -> None:
    """Find out at once what would keep every worker from starting; makes the topics.

    Raises:
        PrimeSparkError: As `run` at its start.
    """
    prepare(settings)
    settings.require_store_url()
    asyncio.run(_check(settings.cloud.kafka, configured_rules(settings)))


async def _check(kafka: KafkaSettings, rules: Sequence[AggregationRule]) -> None:
    from streams.rule_follower import RuleFollower
    from streams.topics import ensure_topics, require_bootstrap_servers

    engine = WindowEngine(rules)

    async def take_up(_rule_id: str, rule: AggregationRule | None) -> None:
        if rule is not None and rule.enabled:
            engine.add_rule(rule, 0)

    await ensure_topics(kafka, engine.source_topics, engine.target_topics)
    await RuleFollower(require_bootstrap_servers(kafka), rules, take_up).catch_up()
    _require_rules(engine)


def prepare(settings: Settings) -> None:
    """Make this process fit for a worker; no broker is contacted.

    Raises:
        MissingDependencyError: Faust is not installed.
        ConfigurationError: Streams are switched off.
    """
    from streams.app import import_faust

    import_faust()
    if not settings.features.streams:
        raise ConfigurationError("features.streams is off", remedy="set features.streams to true")
    if settings.cloud.kafka.embedded:
        from streams.embedded_broker import pace_fetches

        pace_fetches()


def _require_rules(engine: WindowEngine) -> None:
    if not engine.source_topics:
        raise ConfigurationError("no rule is enabled", remedy="enable one in cloud.streams.rules_file, or add one")


async def serve(
    settings: Settings, rules: Sequence[AggregationRule], stopping: asyncio.Event, started: asyncio.Event
) -> None:
    """Run a worker until `stopping` is set; sets `started` when it is a member of its group.

    Raises:
        ConfigurationError: No broker or store is set, or no rule is enabled.
        UnavailableError: The broker does not answer at start, or the worker broke down.
    """
    from aiokafka import AIOKafkaProducer

    from streams.app import FaustSource
    from streams.health import health_page
    from streams.membership import Membership
    from streams.rule_follower import RuleFollower
    from streams.sink import PostgresStore, Sink
    from streams.snapshots import SnapshotStore
    from streams.topics import ensure_topics, require_bootstrap_servers
    from streams.worker import StreamWorker

    kafka = settings.cloud.kafka
    engine = WindowEngine(rules)
    store = PostgresStore(settings.require_store_url())
    await ensure_topics(kafka, engine.source_topics, engine.target_topics)
    servers = require_bootstrap_servers(kafka)
    producer = AIOKafkaProducer(
        bootstrap_servers=servers,
        client_id="primespark-streams",
        enable_idempotence=True,
        max_batch_size=_MAX_BATCH_BYTES,
    )
    await producer.start()
    try:
        source = FaustSource()
        worker = StreamWorker(engine, source, Sink(producer, store), SnapshotStore(kafka, producer))
        resubscribe = asyncio.Event()

        async def take_up(rule_id: str, rule: AggregationRule | None) -> None:
            if rule is not None and rule.enabled:
                alone = WindowEngine([rule])
                await ensure_topics(kafka, alone.source_topics, alone.target_topics)
            known = worker.engine.source_topics
            worker.change_rule(rule_id, rule)
            log.info("rule_taken_up" if rule else "rule_dropped", rule_id=rule_id)
            if known != worker.engine.source_topics:
                resubscribe.set()

        follower = RuleFollower(servers, rules, take_up)
        await follower.catch_up()
        _require_rules(engine)
        async with health_page(settings, worker):
            log.info("stream_worker_starting", rules=list(engine.counters))
            membership = Membership(settings, worker, source, resubscribe, started)
            await _run_until_stopped(worker, membership, follower, stopping)
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await producer.stop()
        store.close()
    log.info("stream_worker_stopped")


async def _run_until_stopped(worker: Any, membership: Any, follower: Any, stopping: asyncio.Event) -> None:
    stop = asyncio.create_task(stopping.wait(), name="stop-signal")
    tasks = {
        stop,
        asyncio.create_task(worker.run(), name="stream-worker"),
        asyncio.create_task(membership.run(), name="faust-app"),
        asyncio.create_task(follower.follow(), name="rule-follower"),
    }
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await worker.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    if stop not in done:
        cause = next((task.exception() for task in done if task.exception()), None)
        raise UnavailableError(f"the stream worker broke down: {cause!r}", remedy="look at the log; a restart goes on")


async def _serve_until_signal(settings: Settings, rules: Sequence[AggregationRule]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await serve(settings, rules, stopping, asyncio.Event())
