"""State of the stream worker on a real Kafka: what changes cost beside the whole, and how soon both are at hand again.

Beside it the time from the watermark to the result, of a whole worker. The rest is a worker's own parts in this
process, so that nothing but them is in the time.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from benchmarks import processes
from benchmarks.result import Result
from benchmarks.stream_worker import AS_JSON, PARTITIONS, Bench, make_topic
from primespark.core.encoding import compress
from primespark.core.settings import KafkaSettings
from primespark.windows.engine import WindowEngine
from primespark.windows.records import Batch
from primespark.windows.rules import parse_rules
from streams.app import FaustSource
from streams.main import collect_seldom
from streams.sink import PostgresStore, Sink
from streams.snapshots import SnapshotStore
from streams.topics import ensure_topics
from streams.worker import StreamWorker
from tests.kafka import brokers

_GROUPS = 100_000
_CHANGED = _GROUPS // 100
_ROUNDS = 3
_ROWS = 5_000
_START_MS = 1_795_000_020_000
_DEVICES = 200
_LIVE_PER_S = 4000
_LIVE_S = 15


def run() -> Iterator[Result]:
    """Snapshots of changes, recovery, and results after their watermark."""
    # What a worker logs here would stand between the figures.
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    # As a worker does.
    collect_seldom()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("kafka", "store"):
            (folder / part).mkdir()
        with brokers.apache_kafka(folder / "kafka") as broker, processes.postgres(folder / "store") as store:
            yield from _state(broker.bootstrap_servers, store)
            yield _latency(Bench(broker.bootstrap_servers, store, folder))


@dataclass(frozen=True, slots=True)
class _Round:
    """Bytes and seconds of a whole snapshot and of one of changes; the seconds until both were loaded."""

    whole: tuple[int, float]
    changes: tuple[int, float]
    loaded_s: float


def _state(broker: str, store_url: str) -> Iterator[Result]:
    rounds = [asyncio.run(_round(broker, store_url, f"groups-{number}")) for number in range(_ROUNDS)]
    share = f"{_CHANGED / _GROUPS:.0%} of {_GROUPS:,} groups"
    size, took_s = (median(one.changes[place] for one in rounds) for place in (0, 1))
    whole_size, whole_s = (median(one.whole[place] for one in rounds) for place in (0, 1))
    for name, unit, value, reference, most in (
        (f"size of a snapshot after a change of {share}", "B", size, whole_size, 0.02),
        (f"time of a snapshot after a change of {share}", "s", took_s, whole_s, 0.1),
        (f"recovery of {_GROUPS:,} panes", "s", median(one.loaded_s for one in rounds), 5.0, 1.0),
    ):
        against = "the promise" if reference == 5.0 else "a whole one"
        ratio = value / reference
        yield Result("streams", name, value, unit, against, reference, ratio, f"<= {most:g}", ratio <= most)


async def _round(broker: str, store_url: str, topic: str) -> _Round:
    """Write the state of very many groups, then that of a few that changed; have another worker load it."""
    kafka = KafkaSettings(bootstrap_servers=broker)
    rule = {**_rule({"size_seconds": 60}), "source_topic": topic, "rule_id": topic}
    rules = parse_rules([rule], "benchmark")
    await ensure_topics(kafka, [topic], ["windows"])
    async with _producing(broker) as producer:
        engine, snapshots = WindowEngine(rules), SnapshotStore(kafka, producer)
        await snapshots.load([(topic, 0)])
        engine.assign(topic, 0, 0)
        written = []
        for first, last in ((0, _GROUPS), (0, _CHANGED)):
            await _take_in(engine, producer, topic, range(first, last))
            began = time.perf_counter()
            size = await snapshots.write(engine.take_changes(topic, 0))
            written.append((size, time.perf_counter() - began))
        store = PostgresStore(store_url)
        successor = StreamWorker(
            WindowEngine(rules), FaustSource(), Sink(producer, store), SnapshotStore(kafka, producer)
        )
        began = time.perf_counter()
        await successor.assigned([(topic, 0)])
        await successor.loaded()
        loaded_s = time.perf_counter() - began
        ((_, panes),) = successor.engine.standing().values()
        if panes != _GROUPS or successor.engine.next_offset(topic, 0) != engine.next_offset(topic, 0):
            raise RuntimeError(f"{panes} panes were loaded of {_GROUPS}")
        await successor.close()
        store.close()
    return _Round(written[0], written[1], loaded_s)


async def _take_in(engine: WindowEngine, producer: AIOKafkaProducer, topic: str, numbers: Sequence[int]) -> None:
    """Publish a row of each of these groups, and give it to the engine as it was read."""
    for first in range(0, len(numbers), _ROWS):
        rows = [
            {"device_id": f"device-{number:06d}", "ts": _START_MS + number % 60_000, "cpu_percent": number % 9973 / 100}
            for number in numbers[first : first + _ROWS]
        ]
        value = compress("\n".join(map(json.dumps, rows)).encode())
        headers = [("content-type", b"application/x-ndjson+zstd")]
        sent = await producer.send_and_wait(topic, value, partition=0, headers=headers)
        engine.process(Batch(topic, 0, sent.offset, rows), 0)


@asynccontextmanager
async def _producing(broker: str) -> AsyncIterator[AIOKafkaProducer]:
    producer = AIOKafkaProducer(bootstrap_servers=broker, enable_idempotence=True)
    await producer.start()
    try:
        yield producer
    finally:
        await producer.stop()


def _rule(window: dict[str, Any]) -> dict[str, Any]:
    return {
        "rule_id": "live", "target_topic": "windows", "aggregation_function": "avg", "value_field": "cpu_percent",
        "window_config": {"window_type": "tumbling", "watermark_scope": "key", **window},
    }  # fmt: skip


def _latency(bench: Bench) -> Result:
    """How long after the message that moves the watermark past a window's end its result is in the target topic."""
    asyncio.run(make_topic(bench.broker, "live"))
    asyncio.run(make_topic(bench.broker, "live-windows", {"message.timestamp.type": "LogAppendTime"}))
    rule = {
        **_rule({"size_seconds": 1, "max_out_of_orderness_seconds": 0}), "target_topic": "live-windows",
    }  # fmt: skip
    with bench.worker("live", [rule]) as worker:
        worker.wait_until_ready()
        moved = asyncio.run(_publish_live(bench.broker))
        waits = asyncio.run(_waits(bench.broker, moved))
    reached = sorted(waits)[int(len(waits) * 0.99)]
    name = f"from the watermark to the result, p99 of {len(waits)} at {_LIVE_PER_S} messages/s"
    return Result("streams", name, reached, "s", "the promise", 1.0, reached, "<= 1", reached <= 1)


async def _publish_live(broker: str) -> dict[tuple[str, int], int]:
    """Messages at an even pace; (device, window start) to the moment of the first message past the window's end."""
    moved: dict[tuple[str, int], int] = {}
    seen: dict[str, int] = {}
    producer = AIOKafkaProducer(bootstrap_servers=broker)
    await producer.start()
    began = time.monotonic()
    try:
        for number in range(_LIVE_PER_S * _LIVE_S):
            await asyncio.sleep(max(0.0, began + number / _LIVE_PER_S - time.monotonic()))
            device = f"device-{number % _DEVICES:03d}"
            now_ms = int(time.time() * 1000)
            start = now_ms // 1000 * 1000
            if seen.get(device, start) != start:
                moved[device, seen[device]] = now_ms
            seen[device] = start
            value = json.dumps({"device_id": device, "ts": now_ms, "cpu_percent": 1.0}).encode()
            await producer.send(
                "live", value, partition=number % _DEVICES % PARTITIONS, headers=[AS_JSON]
            )  # fmt: skip
    finally:
        await producer.stop()
    return moved


async def _waits(broker: str, moved: dict[tuple[str, int], int]) -> list[float]:
    """Of each window the seconds until its result was there."""
    waits: list[float] = []
    consumer = AIOKafkaConsumer("live-windows", bootstrap_servers=broker, auto_offset_reset="earliest")
    await consumer.start()
    try:
        async with asyncio.timeout(30):
            async for record in consumer:
                result = json.loads(record.value)
                moment = moved.pop((result["group"][0], result["window_start"]), None)
                if moment is not None:
                    waits.append((record.timestamp - moment) / 1000)
                if not moved:
                    break
    finally:
        await consumer.stop()
    return waits
