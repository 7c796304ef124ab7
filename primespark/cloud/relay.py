"""The outbox relay: publishes the sync log to Kafka in commit order.

The position is saved after the broker has acknowledged, so a killed relay publishes some messages again, under the
same `log_seq`; the stream worker drops what is not above the highest it has seen. One relay at a time holds the lease.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from primespark.cloud.metrics import PUBLISHED, RELAY_FAILURES, RELAY_POSITION
from primespark.cloud.state import Cloud
from primespark.core.encoding import JSON_LINES_ZSTD, compress
from primespark.core.logging import get_logger
from primespark.core.settings import KafkaSettings
from primespark.errors import TransientError, UnavailableError
from primespark.store import outbox
from primespark.store.outbox import TOPICS

_BATCHES_PER_READ = 50
# Growth of the log that no notification told of (a broken listener) is found after this time.
_IDLE_POLL_S = 5.0
_RETRY_BASE_S = 0.5
_RETRY_MAX_S = 10.0

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Message:
    """One message to Kafka."""

    topic: str
    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class Relay:
    """Publishes until cancelled.

    Args:
        cloud: Store and notifier.
        make_producer: Builds a producer that is not started yet; tests pass their broker's.
    """

    def __init__(self, cloud: Cloud, make_producer: Callable[[], AIOKafkaProducer] | None = None) -> None:
        self._cloud = cloud
        self._kafka = cloud.settings.cloud.kafka
        self._make_producer = make_producer or self._producer
        self.failure: str | None = "not connected yet"

    async def run(self) -> None:
        """Publish; after a failure begin again from the saved position."""
        pause_s = _RETRY_BASE_S
        while True:
            try:
                await self._publish_while_connected()
            except (KafkaError, TransientError, OSError) as error:
                self.failure = f"{type(error).__name__}: {error}"
                RELAY_FAILURES.inc()
                log.warning("relay_failed", cause=self.failure)
            else:
                pause_s = _RETRY_BASE_S
            await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311 (jitter, not a secret)
            pause_s = min(pause_s * 2, _RETRY_MAX_S)

    async def _publish_while_connected(self) -> None:
        await ensure_topics(self._kafka)
        producer = self._make_producer()
        await producer.start()
        try:
            with await asyncio.to_thread(outbox.acquire_lease, self._cloud.engine) as lease:
                position = await self._cloud.transact(outbox.position)
                while lease.is_held():
                    position = await self._publish_from(producer, position)
                raise UnavailableError("the relay's lease is lost", remedy="none needed: it is taken again")
        finally:
            with suppress(KafkaError):
                await producer.stop()

    async def _publish_from(self, producer: AIOKafkaProducer, position: int) -> int:
        """Publish what follows `position`, or wait for something; the new position."""
        ticket = self._cloud.notifier.ticket()
        batches = await self._cloud.transact(lambda connection: outbox.read(connection, position, _BATCHES_PER_READ))
        self.failure = None
        if not batches:
            await self._cloud.notifier.wait_for(ticket, _IDLE_POLL_S)
            return position
        ticket.cancel()
        messages = await asyncio.to_thread(render, batches)
        sent = [
            await producer.send(message.topic, message.value, key=message.key, headers=message.headers)
            for message in messages
        ]
        await asyncio.gather(*sent)
        for message in messages:
            PUBLISHED.labels(message.topic).inc()
        newest = batches[-1].log_seq
        await self._cloud.transact(lambda connection: outbox.advance(connection, newest))
        RELAY_POSITION.set(newest)
        return newest

    def _producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            bootstrap_servers=self._kafka.bootstrap_servers, client_id="primespark-relay", enable_idempotence=True,
            linger_ms=5,
        )  # fmt: skip


def render(batches: Sequence[outbox.OutboxBatch]) -> list[Message]:
    """One message for each batch of a class that has a topic, in order."""
    messages = []
    for batch in batches:
        topic = TOPICS.get(batch.data_class)
        if topic is None or not batch.rows:
            continue
        lines = "\n".join(json.dumps(row, separators=(",", ":"), ensure_ascii=False) for row in batch.rows)
        headers = [("content-type", JSON_LINES_ZSTD.encode()), ("log_seq", str(batch.log_seq).encode())]
        messages.append(Message(topic, batch.device_id.encode(), compress(lines.encode()), headers))
    return messages


async def ensure_topics(kafka: KafkaSettings) -> None:
    """Make the source topics with the right number of partitions; a broker left to itself would make one.

    Raises:
        UnavailableError: The broker does not answer or refuses.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers, client_id="primespark-relay")
    try:
        await admin.start()
        existing: set[Any] = set(await admin.list_topics())
        missing = [NewTopic(name, kafka.partitions, 1) for name in TOPICS.values() if name not in existing]
        answer = await admin.create_topics(missing, timeout_ms=10_000) if missing else None
    except KafkaError as error:
        raise UnavailableError(
            f"no Kafka at {kafka.bootstrap_servers}: {error}", remedy="start the broker", code="kafka_unavailable"
        ) from None
    finally:
        with suppress(KafkaError):
            await admin.close()
    for name, code, *_ in getattr(answer, "topic_errors", ()):
        if code and for_code(code) is not TopicAlreadyExistsError:
            raise UnavailableError(f"topic {name} cannot be made: {for_code(code).__name__}", code="kafka_unavailable")
