"""The real worker process between a real broker and a real PostgreSQL, and what tests send and see there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from tests.helpers import wait_until
from tests.kafka.brokers import Broker, free_port, free_ports

PARTITIONS = 3
START_MS = 1_790_000_040_000
DEVICES = ("a", "b", "c", "d", "e", "f")


@dataclass(frozen=True, slots=True)
class Sent:
    """A message to publish."""

    value: bytes | None
    partition: int
    headers: tuple[tuple[str, bytes], ...] = ()
    key: bytes | None = None

    @classmethod
    def row(cls, row: Mapping[str, Any], partition: int, log_seq: int | None = None) -> Sent:
        """One JSON record."""
        headers = [("content-type", b"application/json")]
        if log_seq is not None:
            headers.append(("log_seq", str(log_seq).encode()))
        return cls(json.dumps(row).encode(), partition, tuple(headers))


@dataclass(slots=True)
class Worker:
    """A `primespark streams` process."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path
    started: float = field(default_factory=time.monotonic)

    @property
    def is_ready(self) -> bool:
        """`/readyz` says so."""
        if self.process.poll() is not None:
            raise AssertionError(f"the worker ended with {self.process.returncode}: {self.log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def counter(self, name: str) -> float:
        """The sum of a counter over its labels."""
        return self.metric(f"{name}_total")

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            lines = answer.read().decode()
        found = re.findall(rf"^primespark_streams_{name}(?:{{.*}})? (\S+)$", lines, re.MULTILINE)
        return sum(map(float, found))

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> tuple[int, float]:
        """Ask it to stop; its status and the seconds it took."""
        asked = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(15), time.monotonic() - asked


class Stage:
    """Starts workers on one rule, publishes to its topic, reads what came of it."""

    def __init__(self, broker: Broker, store_url: str, folder: Path) -> None:
        self.broker = broker
        self.name = f"t{uuid.uuid4().hex[:8]}"
        self.source = f"{self.name}.in"
        self.target = f"{self.name}.out"
        self._folder = folder
        self._store_url = store_url
        self._engine = create_engine(store_url, poolclass=NullPool)
        self._workers: list[Worker] = []
        self._said: set[str] = set()
        self.write_rules(aggregation_function="avg", value_field="cpu_percent")
        asyncio.run(self._make_source())

    def write_rules(self, window: Mapping[str, Any] | None = None, **rule: Any) -> None:
        """Replace the one rule of the workers started after this."""
        config = {"window_type": "tumbling", "size_seconds": 60, "watermark_scope": "key", **(window or {})}
        whole = {
            "rule_id": self.name, "source_topic": self.source, "target_topic": self.target,
            "group_by": ["device_id"], "window_config": config, **rule,
        }  # fmt: skip
        (self._folder / "rules.yaml").write_text(yaml.safe_dump([whole]))

    @property
    def environment(self) -> dict[str, str]:
        """What points a command at the stage."""
        return {
            "PRIMESPARK_HOME": str(self._folder / "home"),
            "PRIMESPARK_GLOBAL__LOG_FORMAT": "json",
            "PRIMESPARK_CLOUD__STORE__URL": self._store_url,
            "PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS": self.broker.bootstrap_servers,
            "PRIMESPARK_CLOUD__KAFKA__EMBEDDED": str(self.broker.embedded).lower(),
            "PRIMESPARK_CLOUD__STREAMS__RULES_FILE": str(self._folder / "rules.yaml"),
        }

    def start(
        self, worker_id: str = "worker-0", *arguments: str, ports: int = 1, environment: Mapping[str, str] | None = None
    ) -> Worker:  # fmt: skip
        """A worker, which may not be ready yet; `arguments` of its command, which listens on so many `ports`."""
        port = free_port() if ports == 1 else free_ports(ports)
        whole = {
            **{name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
            **self.environment,
            "PRIMESPARK_CLOUD__STREAMS__PORT": str(port),
            "PRIMESPARK_CLOUD__STREAMS__WORKER_ID": worker_id,
            **(environment or {}),
        }
        path = self._folder / "worker.log"
        with path.open("ab") as log:
            command = [sys.executable, "-m", "primespark.cli.main", "streams", *arguments]
            process = subprocess.Popen(command, env=whole, stdout=log, stderr=log, start_new_session=True)
        worker = Worker(process, port, path)
        self._workers.append(worker)
        return worker

    def start_ready(self, worker_id: str = "worker-0", environment: Mapping[str, str] | None = None) -> Worker:
        """A worker whose partitions are assigned."""
        worker = self.start(worker_id, environment=environment)
        wait_until(lambda: worker.is_ready, 40)
        return worker

    def publish(self, messages: Iterable[Sent], topic: str = "") -> None:
        """Send messages to the source topic or another; return when the broker has them."""
        asyncio.run(publish(self.broker, topic or self.source, messages))

    def say_rule(self, rule_id: str, value: bytes | None) -> None:
        """Write a live rule, or that there is none; it is taken back when the stage is closed."""
        self._said.add(rule_id)
        self.publish([Sent(value, 0, key=rule_id.encode())], "primespark-streams-rules")

    def read(self, topic: str) -> list[Any]:
        """All records of a topic, in order of partition and offset."""
        return asyncio.run(self._read(topic))

    def windows(self, rule_id: str = "") -> dict[tuple[str, int], tuple[float | None, int, int]]:
        """(device, start ms) to (value, count, revision), as stored."""
        query = text(
            "SELECT group_key, (extract(epoch FROM window_start) * 1000)::bigint, value, count, revision"
            " FROM metrics.window_result WHERE rule_id = :rule"
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query, {"rule": rule_id or self.name}).all()
        return {(group, start): (value, count, revision) for group, start, value, count, revision in rows}

    def counted(self) -> int:
        """Records in all stored windows."""
        return sum(count for _value, count, _revision in self.windows().values())

    def close(self) -> None:
        """End what is left running; asked first, so that no dead member holds partitions against the next test."""
        for worker in self._workers:
            if worker.process.poll() is None:
                worker.process.terminate()
        for worker in self._workers:
            try:
                worker.process.wait(10)
            except subprocess.TimeoutExpired:
                worker.kill()
        for rule_id in list(self._said):
            self.say_rule(rule_id, None)

    async def _make_source(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.broker.bootstrap_servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(self.source, PARTITIONS, 1)], timeout_ms=10_000)
        finally:
            await admin.close()

    async def _read(self, topic: str) -> list[Any]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self.broker.bootstrap_servers, enable_auto_commit=False)
        await consumer.start()
        try:
            partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            consumer.assign(partitions)
            await consumer.seek_to_beginning(*partitions)
            found: list[Any] = []
            for partition, end in (await consumer.end_offsets(partitions)).items():
                while await consumer.position(partition) < end:
                    for records in (await consumer.getmany(partition, timeout_ms=1000)).values():
                        found += records
        finally:
            await consumer.stop()
        return found


async def publish(broker: Broker, topic: str, messages: Iterable[Sent]) -> None:
    """Send messages to a topic; return when the broker has them."""
    producer = AIOKafkaProducer(bootstrap_servers=broker.bootstrap_servers, enable_idempotence=True)
    await producer.start()
    try:
        acknowledgements = [
            await producer.send(
                topic, message.value, key=message.key, partition=message.partition, headers=list(message.headers)
            )
            for message in messages
        ]
        await asyncio.gather(*acknowledgements)
    finally:
        await producer.stop()


def recording(devices: Sequence[str], minutes: int, step_s: int = 5, seed: int = 1) -> list[dict[str, Any]]:
    """Telemetry of devices, in order of time, with a closing record that lets every window close."""
    generator = np.random.default_rng(seed)
    rows = [
        {"device_id": device, "ts": START_MS + second * 1000, "cpu_percent": float(generator.uniform(0, 100))}
        for second in range(0, minutes * 60, step_s)
        for device in devices
    ]
    closing_ms = START_MS + minutes * 60_000 + 10_000
    return [*rows, *({"device_id": device, "ts": closing_ms, "cpu_percent": 0.0} for device in devices)]


def averages(rows: Iterable[Mapping[str, Any]], size_ms: int = 60_000) -> dict[tuple[str, int], tuple[float, int]]:
    """(device, start ms) to (mean, count) by numpy, without the windows that a watermark 10 s behind leaves open."""
    values: dict[tuple[str, int], list[float]] = {}
    newest: dict[str, int] = {}
    for row in rows:
        device, moment = row["device_id"], row["ts"]
        values.setdefault((device, moment // size_ms * size_ms), []).append(row["cpu_percent"])
        newest[device] = max(moment, newest.get(device, moment))
    return {
        (device, start): (float(np.mean(found)), len(found))
        for (device, start), found in values.items()
        if start + size_ms <= newest[device] - 10_000
    }


def singles(rows: Iterable[Mapping[str, Any]]) -> list[Sent]:
    """A message for each row; a device's rows lie in one partition."""
    return [Sent.row(row, DEVICES.index(row["device_id"]) % PARTITIONS) for row in rows]


def equals(stage: Stage, expected: Mapping[tuple[str, int], tuple[float, int]]) -> bool:
    """The stored windows are exactly the expected ones."""
    found = stage.windows()
    return found.keys() == expected.keys() and all(
        found[key][0] == pytest.approx(mean, rel=1e-12) and found[key][1] == count
        for key, (mean, count) in expected.items()
    )
