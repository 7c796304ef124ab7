"""The relay between a real PostgreSQL and real brokers: everything arrives in commit order under its log_seq."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from sqlalchemy import Connection, Engine, text

from primespark.cli.demo.clients import until
from primespark.cloud.main import build
from primespark.cloud.relay import Relay
from primespark.cloud.state import Cloud
from primespark.core.encoding import decompress
from primespark.core.settings import load_settings
from primespark.store import devices, gate, outbox
from primespark.store.outbox import TOPICS
from primespark.sync.records import PushRequest
from tests.kafka.brokers import Broker

NOW = datetime(2026, 11, 20, 10, tzinfo=UTC)
Row = tuple[int, int]


@pytest.fixture(params=["embedded_broker", "apache_kafka"])
def broker(request: pytest.FixtureRequest) -> Broker:
    broker: Broker = request.getfixturevalue(request.param)
    return broker


@pytest.fixture
async def cloud(broker: Broker, store_engine: Engine, tmp_path: Path) -> AsyncIterator[Cloud]:
    url = store_engine.url.render_as_string(hide_password=False)
    kafka = {"bootstrap_servers": broker.bootstrap_servers, "embedded": broker.embedded}
    settings = load_settings(overrides={"cloud": {"store": {"url": url}, "kafka": kafka}})
    cloud = await asyncio.to_thread(build, settings, tmp_path)
    notifier = asyncio.create_task(cloud.notifier.run())
    yield cloud
    notifier.cancel()
    await asyncio.gather(notifier, return_exceptions=True)
    cloud.engine.dispose()


def push(connection: Connection, batch_seq: int, device_id: str, noise_bytes: int = 0) -> None:
    facts = [
        {
            "data_class": "telemetry", "stream": "telemetry", "seq": seq, "boot_id": "boot", "monotonic_ns": seq,
            "time": (NOW + timedelta(seconds=seq)).isoformat(),
            "value": {"cpu_percent": float(seq), "noise": secrets.token_hex(noise_bytes // 2)},
        }
        for seq in range(batch_seq * 10 - 9, batch_seq * 10 + 1)
    ]  # fmt: skip
    body = {
        "v": 1, "replica_id": device_id, "epoch": 1, "batch_seq": batch_seq,
        "hlc": f"1790000000000-0000-{device_id}", "records": facts,
    }  # fmt: skip
    request = PushRequest.model_validate_json(json.dumps(body))
    gate.apply_batch(connection, request, f"digest-{device_id}-{batch_seq}", NOW)


def enrol(connection: Connection, device_id: str) -> None:
    devices.enrol(connection, devices.create_token(connection, 1, timedelta(hours=1)), device_id, {}, {})


async def published(broker: Broker, device_id: str) -> list[tuple[int, list[Row]]]:
    """(log_seq, [(seq, ts)]) of the device's messages, in partition order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=broker.bootstrap_servers, enable_auto_commit=False)
    await consumer.start()
    try:
        partitions = [TopicPartition(TOPICS["telemetry"], number) for number in range(3)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found = []
        for partition, end in ends.items():
            while await consumer.position(partition) < end:
                for messages in (await consumer.getmany(partition, timeout_ms=1000)).values():
                    found += [message for message in messages if message.key == device_id.encode()]
    finally:
        await consumer.stop()
    return [
        (
            int(dict(message.headers)["log_seq"]),
            [(row["seq"], row["ts"]) for row in map(json.loads, decompress(message.value, 10**7).splitlines())],
        )
        for message in found
    ]


async def run_until_published(cloud: Cloud, relay: Relay) -> None:
    """Run the relay until its saved position is the end of the log."""
    task = asyncio.create_task(relay.run())

    def nothing_remains(connection: Connection) -> bool:
        query = text("SELECT NOT EXISTS (SELECT FROM sync.log WHERE log_seq > :position)")
        return bool(connection.execute(query, {"position": outbox.position(connection)}).scalar_one())

    await until("everything published", lambda: cloud.transact(nothing_remains), 20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_everything_arrives_in_commit_order(broker: Broker, cloud: Cloud) -> None:
    device = f"order-{'e' if broker.embedded else 'a'}"
    await cloud.transact(lambda connection: enrol(connection, device))
    for batch_seq in range(1, 6):
        await cloud.transact(partial(push, batch_seq=batch_seq, device_id=device))
    await run_until_published(cloud, Relay(cloud))
    messages = await published(broker, device)
    assert [log_seq for log_seq, _ in messages] == sorted(log_seq for log_seq, _ in messages)
    rows = [row for _, rows in messages for row in rows]
    assert rows == [(seq, round((NOW + timedelta(seconds=seq)).timestamp() * 1000)) for seq in range(1, 51)]


async def test_a_batch_of_many_megabytes_arrives_in_messages_that_a_broker_takes(broker: Broker, cloud: Cloud) -> None:
    device = f"large-{'e' if broker.embedded else 'a'}"
    await cloud.transact(lambda connection: enrol(connection, device))
    for batch_seq in range(1, 4):
        await cloud.transact(partial(push, batch_seq=batch_seq, device_id=device, noise_bytes=100_000))
    await run_until_published(cloud, Relay(cloud))
    messages = await published(broker, device)
    assert len({log_seq for log_seq, _ in messages}) == len(messages) >= 6
    assert [seq for _, rows in messages for seq, _ in rows] == list(range(1, 31))


async def test_a_relay_that_dies_before_it_saved_its_position_repeats_under_the_same_log_seq(
    broker: Broker, cloud: Cloud
) -> None:
    device = f"again-{'e' if broker.embedded else 'a'}"
    await cloud.transact(lambda connection: enrol(connection, device))
    await cloud.transact(lambda connection: push(connection, 1, device))
    start = await cloud.transact(outbox.position)
    await run_until_published(cloud, Relay(cloud))
    # What a kill between the broker's acknowledgement and the commit leaves behind.
    await cloud.transact(
        lambda connection: connection.execute(text("UPDATE sync.relay SET log_seq = :start"), {"start": start})
    )
    await run_until_published(cloud, Relay(cloud))
    first, second = await published(broker, device)
    assert first == second


async def test_a_broken_broker_is_tried_again(broker: Broker, cloud: Cloud) -> None:
    device = f"retry-{'e' if broker.embedded else 'a'}"
    failures = iter([True, False])

    class Refusing(AIOKafkaProducer):  # type: ignore[misc]
        """Refuses its first connection, as a broker that restarts does."""

        async def start(self) -> None:
            if next(failures):
                raise ConnectionRefusedError("not yet")
            await super().start()

    relay = Relay(cloud, lambda: Refusing(bootstrap_servers=broker.bootstrap_servers, enable_idempotence=True))
    await cloud.transact(lambda connection: enrol(connection, device))
    await cloud.transact(lambda connection: push(connection, 1, device))
    await run_until_published(cloud, relay)
    assert len(await published(broker, device)) == 1
