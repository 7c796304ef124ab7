"""`primespark streams`: one stream worker in this process, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import structlog

from primespark.core.logging import configure_logging, get_logger
from primespark.core.settings import Settings
from primespark.errors import ConfigurationError, UnavailableError
from primespark.windows.engine import WindowEngine
from primespark.windows.rules import AggregationRule, load_rules, require_message_key

DEFAULT_RULES = "config/stream_rules.yaml"
_STOP_TIMEOUT_S = 2.0
_OBJECTS_BETWEEN_COLLECTIONS = 50_000

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
    # Records come by the thousand and go again without cycles; looking for these took a third of the time of decoding.
    gc.freeze()
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, 20, 20)
    asyncio.run(_serve_until_signal(settings, read_rules(settings)))


def check(settings: Settings) -> None:
    """Find out at once what would keep every worker from starting; makes the topics.

    Raises:
        PrimeSparkError: As `run` at its start.
    """
    from streams.topics import ensure_topics

    prepare(settings)
    settings.require_store_url()
    engine = _engine_of(read_rules(settings))
    asyncio.run(ensure_topics(settings.cloud.kafka, engine.source_topics, engine.target_topics))


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


def read_rules(settings: Settings) -> list[AggregationRule]:
    """The configured rules, else those that ship with the package.

    Raises:
        ConfigurationError: Rules that cannot work, or not with several workers.
    """
    if settings.cloud.streams.rules_file is not None:
        rules = load_rules(settings.cloud.streams.rules_file)
    else:
        with resources.as_file(resources.files("primespark._data").joinpath(DEFAULT_RULES)) as path:
            rules = load_rules(Path(path))
    require_message_key(rules)
    return rules


def _engine_of(rules: Sequence[AggregationRule]) -> WindowEngine:
    if not any(rule.enabled for rule in rules):
        raise ConfigurationError("no rule is enabled", remedy="enable one in cloud.streams.rules_file")
    return WindowEngine(rules)


async def serve(
    settings: Settings, rules: Sequence[AggregationRule], stopping: asyncio.Event, started: asyncio.Event
) -> None:
    """Run a worker until `stopping` is set; sets `started` when it is a member of its group.

    Raises:
        ConfigurationError: No broker or store is set, or no rule is enabled.
        UnavailableError: The broker does not answer at start, or the worker broke down.
    """
    from aiokafka import AIOKafkaProducer

    from streams.app import FaustSource, attach, build_app
    from streams.health import health_page
    from streams.sink import PostgresStore, Sink
    from streams.snapshots import SnapshotStore
    from streams.topics import ensure_topics, require_bootstrap_servers
    from streams.worker import StreamWorker

    engine = _engine_of(rules)
    kafka = settings.cloud.kafka
    store = PostgresStore(settings.require_store_url())
    await ensure_topics(kafka, engine.source_topics, engine.target_topics)
    producer = AIOKafkaProducer(
        bootstrap_servers=require_bootstrap_servers(kafka), client_id="primespark-streams", enable_idempotence=True
    )
    await producer.start()
    try:
        app = build_app(settings)
        worker = StreamWorker(engine, FaustSource(app), Sink(producer, store), SnapshotStore(kafka, producer))
        attach(app, worker)
        async with health_page(settings, worker):
            log.info("stream_worker_starting", rules=[rule.rule_id for rule in rules if rule.enabled])
            await _run_until_stopped(app, worker, stopping, started)
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await producer.stop()
        store.close()
    log.info("stream_worker_stopped")


async def _run_until_stopped(app: Any, worker: Any, stopping: asyncio.Event, started: asyncio.Event) -> None:
    app.finalize()
    cycles = asyncio.create_task(worker.run(), name="stream-worker")
    consuming = asyncio.create_task(_start_and_wait(app, started), name="faust-app")
    stop = asyncio.create_task(stopping.wait(), name="stop-signal")
    try:
        done, _ = await asyncio.wait({cycles, consuming, stop}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await worker.close()
        cycles.cancel()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await app.stop()
        except TimeoutError:
            log.warning("faust_stop_timed_out")
        consuming.cancel()
        stop.cancel()
        await asyncio.gather(cycles, consuming, stop, return_exceptions=True)
    if stop not in done:
        cause = app.crash_reason or next((task.exception() for task in done if task.exception()), None)
        raise UnavailableError(f"the stream worker broke down: {cause!r}", remedy="look at the log; a restart goes on")


async def _start_and_wait(app: Any, started: asyncio.Event) -> None:
    await app.start()
    started.set()
    await app.wait_until_stopped()


async def _serve_until_signal(settings: Settings, rules: Sequence[AggregationRule]) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await serve(settings, rules, stopping, asyncio.Event())
