"""The stream worker as a process between a real broker and a real store, for benchmarks of it."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

from benchmarks import processes
from streams.app import APP_ID
from streams.topics import SNAPSHOT_TOPIC
from tests.kafka.brokers import free_port

PARTITIONS = 3
AS_JSON = ("content-type", b"application/json")
_LONGEST_S = 180.0


@dataclass(frozen=True, slots=True)
class Message:
    """To be published in the partition of its device."""

    device: int
    ts: int
    value: bytes
    headers: list[tuple[str, bytes]]


class Bench:
    """A broker, a store, and workers between them."""

    def __init__(self, broker: str, store_url: str, folder: Path) -> None:
        self.broker = broker
        self._store_url = store_url
        self._folder = folder
        self._started = 0

    @contextmanager
    def worker(self, topic: str, rules: list[dict[str, Any]]) -> Iterator[Worker]:
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
            worker = Worker(process.pid, port, self._folder / "worker.log")
            yield worker
            process.terminate()
            process.wait(30)

    async def publish(self, topic: str, messages: Iterator[Message]) -> None:
        """Make a topic of these."""
        await make_topic(self.broker, topic)
        producer = AIOKafkaProducer(bootstrap_servers=self.broker, linger_ms=20, max_batch_size=1 << 19)
        await producer.start()
        try:
            for message in messages:
                await producer.send(
                    topic, message.value, partition=message.device % PARTITIONS, key=b"%d" % message.device,
                    timestamp_ms=message.ts, headers=message.headers,
                )  # fmt: skip
            await producer.flush()
        finally:
            await producer.stop()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a worker is, and at what cost."""

    rows: int
    at: float
    cpu_seconds: float


class Worker:
    """A worker process."""

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

    def wait_for_rows(self, count: int) -> Progress:
        """Look until it has taken in so many rows."""
        found: list[Progress] = []

        def is_there() -> bool:
            found[:] = [self._look()]
            return found[0].rows >= count

        # To look is work for the worker, too.
        processes.wait(is_there, self._log, _LONGEST_S, interval_s=0.5)
        return found[0]

    def _look(self) -> Progress:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=5) as answer:
                told = re.search(r"^primespark_streams_events_total (\S+)$", answer.read().decode(), re.MULTILINE)
        except OSError:
            told = None
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        return Progress(int(float(told[1])) if told else 0, time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"))


async def make_topic(broker: str, topic: str, config: dict[str, str] | None = None) -> None:
    """Make a topic whose messages stay."""
    admin = AIOKafkaAdminClient(bootstrap_servers=broker)
    await admin.start()
    try:
        # Messages are as old as their events, and would be deleted while they are read.
        configs = {"retention.ms": "-1", **(config or {})}
        await admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs=configs)], timeout_ms=10_000)
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
