"""The stream worker from a real Kafka to a real PostgreSQL, beside other ways to add up the same messages.

Processor time a record is that of the process that reads, from its first message to its last: the worker's with
results delivered, snapshots written and offsets committed meanwhile. The peers run in a Python of their own
(`make .tools/stream-peers`); each writes only what it must.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from benchmarks import processes
from benchmarks.result import Result
from benchmarks.stream_worker import AS_JSON, Bench, Message
from tests.kafka import brokers

RECORDS = 600_000
# So many that the looks at them, half a second apart, do not count.
_ARROW_RECORDS = 3_000_000
_DEVICES = 200
_ROUNDS = 3
_ROWS = 500
# Of the slower peers a part, as their cost a record is the same.
_FAUST_RECORDS = 20_000
_QUIX_RECORDS = 100_000
_ROOT = Path(__file__).parents[1]
_PEERS = _ROOT / ".tools" / "stream-peers" / "bin" / "python"
_START_MS = 1_795_000_020_000
_ARROW = "application/vnd.apache.arrow.stream"


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
    """Throughput and processor time of one rule, of ten, of rows in Arrow."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("kafka", "store"):
            (folder / part).mkdir()
        with brokers.apache_kafka(folder / "kafka") as broker, processes.postgres(folder / "store") as store:
            bench = Bench(broker.bootstrap_servers, store, folder)
            asyncio.run(bench.publish("singles", _singles()))
            asyncio.run(bench.publish("arrow", _in_arrow()))
            yield from _throughput(bench)


def _throughput(bench: Bench) -> Iterator[Result]:
    runs: dict[str, list[Run]] = {}
    for _ in range(_ROUNDS):
        runs.setdefault("raw", []).append(_peer(bench, "raw", RECORDS))
        runs.setdefault("ours", []).append(_ours(bench, "singles", [_rule(0)], RECORDS))
        runs.setdefault("arrow", []).append(_ours(bench, "arrow", [_rule(0)], _ARROW_RECORDS))
        runs.setdefault("ten", []).append(_ours(bench, "singles", _ten_rules(), RECORDS))
        runs.setdefault("bytewax", []).append(_peer(bench, "bytewax_fold", RECORDS))
        runs.setdefault("quix", []).append(_peer(bench, "quix_tumbling", _QUIX_RECORDS))
        runs.setdefault("faust", []).append(_peer(bench, "faust_table", _FAUST_RECORDS))
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


def _peer(bench: Bench, script: str, count: int) -> Run:
    """Run one of the peers over the first messages."""
    if not _PEERS.exists():
        raise SystemExit("the peers are not installed: make .tools/stream-peers")
    command = [str(_PEERS), "-m", f"benchmarks.stream_peers.{script}", bench.broker, "singles", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=_ROOT)
    if done.returncode:
        raise RuntimeError(f"{script} ended with {done.returncode}: {done.stderr[-2000:]}")
    report = json.loads(done.stdout.strip().splitlines()[-1])
    return Run(report["records"], report["seconds"], report["cpu_seconds"])


def _ours(bench: Bench, topic: str, rules: list[dict[str, Any]], count: int) -> Run:
    """Run the worker over all messages of a topic that it has not seen yet."""
    with bench.worker(topic, rules) as worker:
        first = worker.wait_for_rows(1)
        last = worker.wait_for_rows(count)
    return Run(last.rows - first.rows, last.at - first.at, last.cpu_seconds - first.cpu_seconds)


def _row(number: int, chance: random.Random) -> dict[str, Any]:
    """Telemetry of 127 bytes, of one device after the other, one a second of each."""
    return {
        "device_id": f"device-{number % _DEVICES:03d}", "ts": _START_MS + number // _DEVICES * 1000, "metric": "system",
        "cpu_percent": round(chance.uniform(10, 99), 2), "mem_percent": 41.25, "temp_c": 48.5, "seq": 1000000 + number,
    }  # fmt: skip


def _singles(count: int = RECORDS) -> Iterator[Message]:
    chance = random.Random(1)  # noqa: S311 (data, not a secret)
    headers = [AS_JSON]
    for number in range(count):
        row = _row(number, chance)
        yield Message(number % _DEVICES, row["ts"], json.dumps(row, separators=(",", ":")).encode(), headers)


def _in_arrow() -> Iterator[Message]:
    """More such rows, 500 of a device to a message."""
    chance = random.Random(1)  # noqa: S311 (data, not a secret)
    waiting: dict[int, list[dict[str, Any]]] = {}
    for number in range(_ARROW_RECORDS):
        rows = waiting.setdefault(number % _DEVICES, [])
        rows.append(_row(number, chance))
        if len(rows) == _ROWS:
            batch = pa.RecordBatch.from_pylist(rows)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
                writer.write_batch(batch)
            value = sink.getvalue().to_pybytes()
            yield Message(number % _DEVICES, rows[-1]["ts"], value, [("content-type", _ARROW.encode())])
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
