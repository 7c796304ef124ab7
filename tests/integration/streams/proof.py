"""The whole way of a fact: gate, sync log, relay, broker, workers, store; fed and disturbed while it runs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from sqlalchemy import create_engine, text

from primespark.store import devices, gate
from primespark.sync.records import PushRequest
from streams.app import APP_ID
from tests.integration.streams.stage import PARTITIONS, Stage, Worker
from tests.kafka.brokers import Broker, free_port

TOPIC = "edge.telemetry"
TARGET = "cloud.proof"
ROWS_PER_BATCH = 100
DISORDER_S = 10
LATENESS_S = 600


@dataclass(frozen=True, slots=True)
class Fact:
    """What a device measured."""

    device: str
    ts: int
    value: float


def facts_of(device: str, count: int, start: datetime, chance: random.Random) -> list[Fact]:
    """One a second, some of them up to the allowed disorder late, a few of them minutes."""
    order = []
    for second in range(count):
        late = chance.choices([0.0, chance.uniform(0, DISORDER_S - 1), chance.uniform(60, 240)], [0.8, 0.19, 0.01])[0]
        order.append((second + late, second))
    begin = int(start.timestamp() * 1000)
    return [Fact(device, begin + second * 1000, chance.uniform(0, 100)) for _arrival, second in sorted(order)]


def expected_windows(facts: Iterable[Fact], size_s: int, slide_s: int) -> dict[tuple[str, int], list[float]]:
    """(device, start) to the values of the window, by definition: one fact at a time, a window for each start."""
    size, slide = size_s * 1000, slide_s * 1000
    windows: dict[tuple[str, int], list[float]] = {}
    newest: dict[str, int] = {}
    for fact in facts:
        start = fact.ts // slide * slide
        while start > fact.ts - size:
            windows.setdefault((fact.device, start), []).append(fact.value)
            start -= slide
        newest[fact.device] = max(fact.ts, newest.get(fact.device, 0))
    return {
        key: values for key, values in windows.items() if key[1] + size <= newest[key[0]] - DISORDER_S * 1000
    }  # fmt: skip


class Cloud:
    """The `primespark cloud` process, whose relay publishes what the gate took in."""

    def __init__(self, broker: Broker, store_url: str, folder: Path) -> None:
        self._environment = {
            **os.environ,
            "PRIMESPARK_HOME": str(folder / "cloud"),
            "PRIMESPARK_CLOUD__STORE__URL": store_url,
            "PRIMESPARK_CLOUD__PORT": str(free_port()),
            "PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS": broker.bootstrap_servers,
            "PRIMESPARK_CLOUD__KAFKA__EMBEDDED": "false",
        }
        self._log = folder / "cloud.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._engine = create_engine(store_url)

    def start(self) -> None:
        """Start it, or start it again."""
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", "primespark.cli.main", "cloud"]
            self._process = subprocess.Popen(
                command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def enrol(self, device_ids: Iterable[str]) -> None:
        """Let devices in."""
        with self._engine.begin() as connection:
            for device_id in device_ids:
                token = devices.create_token(connection, 1, timedelta(hours=1))
                devices.enrol(connection, token, device_id, {}, {})

    def push(self, facts: list[Fact], batch_seq: int) -> None:
        """Take in a batch of one device, as the gate does."""
        device_id = facts[0].device
        first = (batch_seq - 1) * ROWS_PER_BATCH + 1
        records = [
            {
                "data_class": "telemetry", "stream": "telemetry", "seq": seq, "boot_id": "boot", "monotonic_ns": seq,
                "time": datetime.fromtimestamp(fact.ts / 1000, UTC).isoformat(), "value": {"cpu_percent": fact.value},
            }
            for seq, fact in enumerate(facts, first)
        ]  # fmt: skip
        body = {
            "v": 1, "replica_id": device_id, "epoch": 1, "batch_seq": batch_seq,
            "hlc": f"1790000000000-0000-{device_id}", "records": records,
        }  # fmt: skip
        request = PushRequest.model_validate_json(json.dumps(body))
        with self._engine.begin() as connection:
            gate.apply_batch(connection, request, f"digest-{device_id}-{batch_seq}", datetime.now(UTC))

    def close(self) -> None:
        """End all of it."""
        self.kill()
        self._engine.dispose()


@dataclass(slots=True)
class Fleet:
    """The workers of the group."""

    stage: Stage
    workers: dict[str, Worker] = field(default_factory=dict)
    started: int = 0

    def join(self) -> None:
        """One more worker."""
        name = f"worker-{self.started}"
        self.started += 1
        self.workers[name] = self.stage.start(name)

    def kill(self, chance: random.Random) -> None:
        """`kill -9` of one of them, after which another comes in its place."""
        self.workers.pop(chance.choice(sorted(self.workers))).kill()
        self.join()

    def leave(self, chance: random.Random) -> None:
        """One stops as it is asked to."""
        status, _took_s = self.workers.pop(chance.choice(sorted(self.workers))).stop()
        assert status == 0

    def assert_alive(self) -> None:
        """None of them has ended by itself."""
        for name, worker in self.workers.items():
            assert worker.process.poll() is None, f"{name} ended: {worker.log.read_text()[-3000:]}"

    def pause(self, chance: random.Random) -> Worker:
        """One stands still, and knows nothing of it."""
        worker = self.workers[chance.choice(sorted(self.workers))]
        worker.process.send_signal(signal.SIGSTOP)
        return worker


def write_rules(path: Path) -> None:
    """Two rules over the same facts."""
    window = {
        "watermark_scope": "key", "max_out_of_orderness_seconds": DISORDER_S, "allowed_lateness_seconds": LATENESS_S,
    }  # fmt: skip
    common = {"source_topic": TOPIC, "target_topic": TARGET, "value_field": "cpu_percent", "group_by": ["device_id"]}
    rules = [
        {
            "rule_id": "minutes", "aggregation_function": "avg", **common,
            "window_config": {"window_type": "tumbling", "size_seconds": 60, **window},
        },
        {
            "rule_id": "sliding", "aggregation_function": "max", **common,
            "window_config": {"window_type": "sliding", "size_seconds": 120, "slide_seconds": 60, **window},
        },
    ]  # fmt: skip
    path.write_text(json.dumps(rules))


def stored(store_url: str) -> dict[tuple[str, str, int], tuple[float | None, int, int]]:
    """(rule, device, start) to (value, count, revision)."""
    query = text(
        "SELECT rule_id, group_key, (extract(epoch FROM window_start) * 1000)::bigint, value, count, revision"
        " FROM metrics.window_result"
    )
    engine = create_engine(store_url)
    try:
        with engine.connect() as connection:
            found = connection.execute(query).all()
    finally:
        engine.dispose()
    return {(rule, group, start): (value, count, revision) for rule, group, start, value, count, revision in found}


def number_stored(store_url: str) -> int:
    """How many windows have said something."""
    engine = create_engine(store_url)
    try:
        with engine.connect() as connection:
            return int(connection.execute(text("SELECT count(*) FROM metrics.window_result")).scalar_one())
    finally:
        engine.dispose()


def newest_published(records: Iterable[Any]) -> dict[tuple[str, str, int], tuple[float | None, int, int]]:
    """The same of the target topic: of each key the result with the highest revision."""
    newest: dict[tuple[str, str, int], tuple[float | None, int, int]] = {}
    for record in records:
        result = json.loads(record.value)
        key = (result["rule_id"], result["group"][0], result["window_start"])
        told = (result["value"], result["count"], result["revision"])
        if key not in newest or told[2] >= newest[key][2]:
            newest[key] = told
    return newest


async def uncommitted(broker: Broker, topic: str = TOPIC) -> int:
    """Messages of a source topic that the group has not committed."""
    partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
    admin = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers, enable_auto_commit=False)
    await admin.start()
    await consumer.start()
    try:
        committed = await admin.list_consumer_group_offsets(APP_ID)
        ends = await consumer.end_offsets(partitions)
        return sum(end - (committed[tp].offset if tp in committed else 0) for tp, end in ends.items())
    finally:
        await consumer.stop()
        await admin.close()
