"""The stream worker from a real Kafka to a real PostgreSQL, beside other ways to add up the same messages.

Processor time a record is that of the process that reads, from its first message to its last: the worker's with
results delivered, snapshots written and offsets committed meanwhile. The peers run in a Python of their own
(`make .tools/stream-peers`); each writes only what it must.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

from benchmarks import processes
from benchmarks.result import Result
from streams.app import APP_ID
from streams.topics import SNAPSHOT_TOPIC
from tests.kafka import brokers
from tests.kafka.brokers import free_port

RECORDS = 600_000
_DEVICES = 200
_PARTITIONS = 3
_ROUNDS = 3
_ROWS = 500
# Of the slower peers a part, as their cost a record is the same.
_FAUST_RECORDS = 20_000
_QUIX_RECORDS = 100_000
_ROOT = Path(__file__).parents[1]
_PEERS = _ROOT / ".tools" / "stream-peers" / "bin" / "python"
_START_MS = 1_795_000_020_000
_LONGEST_S = 180.0
_LIVE_PER_S = 4000
_LIVE_S = 15
_ARROW = "application/vnd.apache.arrow.stream"
_AS_JSON = ("content-type", b"application/json")


@dataclass(frozen=True, slots=True)
class Run:
    """What a reader took from its first message to its last."""

    records: int
    seconds: float
    cpu_seconds: float

    @property
    def cpu_us(self) -> float:
        """Processor time a record."""
        return self.cpu_seconds / self.records * 1e6

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds


def run() -> Iterator[Result]:
    """Throughput and processor time of one rule, of ten, of rows in Arrow; the time from watermark to result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("kafka", "store"):
            (folder / part).mkdir()
        with brokers.apache_kafka(folder / "kafka") as broker, processes.postgres(folder / "store") as store:
            bench = _Bench(broker.bootstrap_servers, store, folder)
            asyncio.run(bench.publish("singles", _singles()))
            asyncio.run(bench.publish("arrow", _in_arrow()))
            yield from _throughput(bench)
            yield _latency(bench)


def _throughput(bench: _Bench) -> Iterator[Result]:
    runs: dict[str, list[Run]] = {}
    for _ in range(_ROUNDS):
        runs.setdefault("raw", []).append(bench.peer("raw", RECORDS))
        runs.setdefault("ours", []).append(bench.ours("singles", [_rule(0)], RECORDS))
        runs.setdefault("arrow", []).append(bench.ours("arrow", [_rule(0)], RECORDS))
        runs.setdefault("ten", []).append(bench.ours("singles", _ten_rules(), RECORDS))
        runs.setdefault("bytewax", []).append(bench.peer("bytewax_fold", RECORDS))
        runs.setdefault("quix", []).append(bench.peer("quix_tumbling", _QUIX_RECORDS))
        runs.setdefault("faust", []).append(bench.peer("faust_table", _FAUST_RECORDS))
    cpu = {name: median(one.cpu_us for one in found) for name, found in runs.items()}
    rate = {name: median(one.rate for one in found) for name, found in runs.items()}
    yield _rate("messages of 127 B, one tumbling rule", rate["ours"], 100_000)
    for peer, against, most in (
        ("raw", "librdkafka, not decoded", 5.0), ("bytewax", "Bytewax fold_window", 0.5),
        ("quix", "Quix tumbling", 0.25), ("faust", "Faust's windowed table", 0.05),
    ):  # fmt: skip
        ratio = cpu["ours"] / cpu[peer]
        name = "processor a message, one tumbling rule"
        yield Result("windows", name, cpu["ours"], "us", against, cpu[peer], ratio, f"<= {most}", ratio <= most)
    yield _rate("messages, ten rules with sliding and percentile", rate["ten"], 40_000)
    yield _rate("rows in Arrow by 500, one rule", rate["arrow"], 800_000)


def _rate(name: str, rate: float, least: float) -> Result:
    ratio = rate / least
    return Result("windows", name, rate, "/s", "the promise", least, ratio, ">= 1", ratio >= 1)


class _Bench:
    """A broker with the messages, and readers of them."""

    def __init__(self, broker: str, store_url: str, folder: Path) -> None:
        self.broker = broker
        self._store_url = store_url
        self._folder = folder
        self._started = 0

    def peer(self, script: str, count: int) -> Run:
        """Run one of the peers over the first messages."""
        if not _PEERS.exists():
            raise SystemExit("the peers are not installed: make .tools/stream-peers")
        command = [str(_PEERS), "-m", f"benchmarks.stream_peers.{script}", self.broker, "singles", str(count)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=_ROOT)
        if done.returncode:
            raise RuntimeError(f"{script} ended with {done.returncode}: {done.stderr[-2000:]}")
        report = json.loads(done.stdout.strip().splitlines()[-1])
        return Run(report["records"], report["seconds"], report["cpu_seconds"])

    def ours(self, topic: str, rules: list[dict[str, Any]], count: int) -> Run:
        """Run the worker over all messages of a topic that it has not seen yet."""
        with self.worker(topic, rules) as worker:
            first = worker.wait_for_rows(1)
            last = worker.wait_for_rows(count)
        return Run(last.rows - first.rows, last.at - first.at, last.cpu_seconds - first.cpu_seconds)

    @contextmanager
    def worker(self, topic: str, rules: list[dict[str, Any]]) -> Iterator[_Worker]:
        """A `primespark streams` process whose group and snapshots are of no earlier one."""
        self._started += 1
        asyncio.run(_forget(self.broker))
        path = self._folder / "rules.json"
        # Rules of a name that is new: results are rows that are not there yet.
        path.write_text(
            json.dumps(
                [{**rule, "rule_id": f"{rule['rule_id']}-{self._started}", "source_topic": topic} for rule in rules]
            )
        )
        port = free_port()
        environment = {
            "PRIMESPARK_HOME": str(self._folder / f"home{self._started}"),
            "PRIMESPARK_CLOUD__STORE__URL": self._store_url,
            "PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS": self.broker,
            "PRIMESPARK_CLOUD__KAFKA__EMBEDDED": "false",
            "PRIMESPARK_CLOUD__STREAMS__PORT": str(port),
            "PRIMESPARK_CLOUD__STREAMS__RULES_FILE": str(path),
        }
        command = (sys.executable, "-m", "primespark.cli.main", "streams")
        with processes.process(command, environment, self._folder / "worker.log") as process:
            worker = _Worker(process.pid, port, self._folder / "worker.log")
            yield worker
            process.terminate()
            process.wait(30)

    async def publish(self, topic: str, messages: Iterator[_Message]) -> None:
        """Make a topic of these."""
        await _make(self.broker, topic)
        producer = AIOKafkaProducer(bootstrap_servers=self.broker, linger_ms=20, max_batch_size=1 << 19)
        await producer.start()
        try:
            for message in messages:
                await producer.send(
                    topic, message.value, partition=message.device % _PARTITIONS, key=b"%d" % message.device,
                    timestamp_ms=message.ts, headers=message.headers,
                )  # fmt: skip
            await producer.flush()
        finally:
            await producer.stop()


@dataclass(frozen=True, slots=True)
class _Progress:
    rows: int
    at: float
    cpu_seconds: float


class _Worker:
    def __init__(self, pid: int, port: int, log: Path) -> None:
        self._pid = pid
        self._port = port
        self._log = log

    def wait_until_ready(self) -> None:
        """Until its partitions are assigned."""

        def is_ready() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=5):
                    return True
            except OSError:
                return False

        processes.wait(is_ready, self._log)

    def wait_for_rows(self, count: int) -> _Progress:
        """Look until it has taken in so many rows."""
        found: list[_Progress] = []

        def is_there() -> bool:
            found[:] = [self._look()]
            return found[0].rows >= count

        # To look is work for the worker, too.
        processes.wait(is_there, self._log, _LONGEST_S, interval_s=0.5)
        return found[0]

    def _look(self) -> _Progress:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
                told = re.search(r"^primespark_streams_events_total (\S+)$", answer.read().decode(), re.MULTILINE)
        except OSError:
            told = None
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return _Progress(int(float(told[1])) if told else 0, time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"))


@dataclass(frozen=True, slots=True)
class _Message:
    device: int
    ts: int
    value: bytes
    headers: list[tuple[str, bytes]]


def _row(number: int, chance: random.Random) -> dict[str, Any]:
    """Telemetry of 127 bytes, of one device after the other, one a second of each."""
    return {
        "device_id": f"device-{number % _DEVICES:03d}", "ts": _START_MS + number // _DEVICES * 1000, "metric": "system",
        "cpu_percent": round(chance.uniform(10, 99), 2), "mem_percent": 41.25, "temp_c": 48.5, "seq": 1000000 + number,
    }  # fmt: skip


def _singles(count: int = RECORDS) -> Iterator[_Message]:
    chance = random.Random(1)  # noqa: S311 (data, not a secret)
    headers = [_AS_JSON]
    for number in range(count):
        row = _row(number, chance)
        yield _Message(number % _DEVICES, row["ts"], json.dumps(row, separators=(",", ":")).encode(), headers)


def _in_arrow() -> Iterator[_Message]:
    """The same rows, 500 of a device to a message."""
    chance = random.Random(1)  # noqa: S311 (data, not a secret)
    waiting: dict[int, list[dict[str, Any]]] = {}
    for number in range(RECORDS):
        rows = waiting.setdefault(number % _DEVICES, [])
        rows.append(_row(number, chance))
        if len(rows) == _ROWS:
            batch = pa.RecordBatch.from_pylist(rows)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
                writer.write_batch(batch)
            value = sink.getvalue().to_pybytes()
            yield _Message(number % _DEVICES, rows[-1]["ts"], value, [("content-type", _ARROW.encode())])
            waiting[number % _DEVICES] = []


def _rule(number: int, function: str = "avg", slide_s: int | None = None, **fields: Any) -> dict[str, Any]:
    window: dict[str, Any] = {"window_type": "tumbling", "size_seconds": 60, "watermark_scope": "key"}
    if slide_s is not None:
        window.update(window_type="sliding", slide_seconds=slide_s)
    return {
        "rule_id": f"rule-{number}", "target_topic": "windows", "aggregation_function": function,
        "value_field": "cpu_percent", "window_config": window, **fields,
    }  # fmt: skip


def _ten_rules() -> list[dict[str, Any]]:
    return [
        _rule(0), _rule(1, "sum"), _rule(2, "max"), _rule(3, "percentile", percentile=95), _rule(4, "stddev"),
        _rule(5, "avg", 30), _rule(6, "percentile", 30, percentile=50), _rule(7, "max", 20), _rule(8, "last"),
        _rule(9, "count", 30),
    ]  # fmt: skip


def _latency(bench: _Bench) -> Result:
    """How long after the message that moves the watermark past a window's end its result is in the target topic."""
    asyncio.run(_make(bench.broker, "live"))
    asyncio.run(_make(bench.broker, "live-windows", {"message.timestamp.type": "LogAppendTime"}))
    window = {
        "window_type": "tumbling", "size_seconds": 1, "watermark_scope": "key", "max_out_of_orderness_seconds": 0,
    }  # fmt: skip
    rule = {**_rule(0), "target_topic": "live-windows", "window_config": window}
    with bench.worker("live", [rule]) as worker:
        worker.wait_until_ready()
        moved = asyncio.run(_publish_live(bench.broker))
        waits = asyncio.run(_waits(bench.broker, moved))
    reached = sorted(waits)[int(len(waits) * 0.99)]
    name = f"from the watermark to the result, p99 of {len(waits)} at {_LIVE_PER_S} messages/s"
    return Result("windows", name, reached, "s", "the promise", 1.0, reached, "<= 1", reached <= 1)


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
                "live", value, partition=number % _DEVICES % _PARTITIONS, headers=[_AS_JSON]
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


async def _make(broker: str, topic: str, config: dict[str, str] | None = None) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        # Messages are as old as their events, and would be deleted while they are read.
        configs = {"retention.ms": "-1", **(config or {})}
        await admin.create_topics([NewTopic(topic, _PARTITIONS, 1, topic_configs=configs)], timeout_ms=10_000)
    finally:
        await admin.close()


async def _forget(broker: str) -> None:
    """Take away what an earlier worker left: its group's offsets and its snapshots."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        while SNAPSHOT_TOPIC in await admin.list_topics():
            await admin.delete_topics([SNAPSHOT_TOPIC], timeout_ms=10_000)
            await asyncio.sleep(0.5)
        known = await admin.list_consumer_group_offsets(APP_ID)
    except GroupCoordinatorNotAvailableError:
        # No group has been there yet.
        known = {}
    finally:
        await admin.close()
    if known:
        consumer = AIOKafkaConsumer(bootstrap_servers=broker, group_id=APP_ID, enable_auto_commit=False)
        await consumer.start()
        try:
            consumer.assign(list(known))
            await consumer.commit(dict.fromkeys(known, 0))
        finally:
            await consumer.stop()
