"""Where results go: the target topics, the metrics store, and for what cannot be used the late and dead-letter topics.

Everything here may happen again after a crash: results carry keys and revisions under which a repetition overwrites
itself; late and dead letters carry the position of their message.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from pydantic_core import to_json

from primespark.windows.engine import Output
from primespark.windows.repartition import REPARTITION_TOPIC, Routed
from primespark.windows.results import LateRecord, WindowResult
from streams.routing import ROUTED, to_routed_messages
from streams.topics import DEAD_LETTER_TOPIC

# Below the broker's usual bound of 1 MB with room for headers; longer poison is cut.
_MAX_DEAD_LETTER_BYTES = 900_000
_ROWS_PER_STATEMENT = 1000
# A thread that waits for a lock cannot be cancelled, and would keep the process from ending.
_STATEMENT_TIMEOUT_MS = 5000

Message = tuple[str, bytes, bytes, list[tuple[str, bytes]]]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A message that could not be decoded, as it came, and why."""

    topic: str
    partition: int
    offset: int
    value: bytes
    code: str
    reason: str


@dataclass(slots=True)
class Outgoing:
    """What waits to be delivered."""

    results: list[tuple[str, WindowResult]] = field(default_factory=list)
    late: list[LateRecord] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)
    routed: list[Routed] = field(default_factory=list)

    def __len__(self) -> int:
        records = sum([len(routed.places) for routed in self.routed])
        return len(self.results) + len(self.late) + len(self.dead) + records

    def extend(self, output: Output, target_of: Any) -> None:
        """Add what the engine said; `target_of` gives a rule's topic."""
        self.results.extend((target_of(result.rule_id), result) for result in output.results)
        self.late.extend(output.late)
        self.routed.extend(output.routed)


class ResultStore(Protocol):
    """The part of the metrics store that takes results; called in a thread."""

    def open(self) -> None:
        """Bring the schema up to date; called until it succeeds."""

    def upsert(self, results: Sequence[WindowResult]) -> None:
        """Store results, at most one of each key."""

    def close(self) -> None:
        """Give connections back."""


class Sink:
    """Delivers to Kafka and to the store; returns when both have acknowledged."""

    def __init__(self, producer: AIOKafkaProducer, store: ResultStore) -> None:
        self._producer = producer
        self._store = store

    async def open(self) -> None:
        """Prepare the store; may be repeated after a failure."""
        await asyncio.to_thread(self._store.open)

    async def deliver(self, outgoing: Outgoing) -> None:
        """Publish and store all of it; an error leaves it to be delivered again, whole."""
        await self._publish_routed(outgoing.routed)
        await self._publish(to_messages(outgoing))
        newest = {result.key: result for _topic, result in outgoing.results}
        if newest:
            await asyncio.to_thread(self._store.upsert, list(newest.values()))

    async def _publish(self, messages: Iterable[Message]) -> None:
        """In batches of our own: a call for each message costs five times as much."""
        producer = self._producer
        open_batches: dict[tuple[str, int], Any] = {}
        acknowledgements = []
        partitions: dict[str, list[int]] = {}
        for topic, key, value, headers in messages:
            if topic not in partitions:
                partitions[topic] = sorted(await producer.partitions_for(topic))
            # Any that is the same for the same key will do; Kafka's own, murmur2, takes 10 us in Python.
            place = topic, partitions[topic][zlib.crc32(key) % len(partitions[topic])]
            batch = open_batches.get(place)
            if batch is None or batch.append(timestamp=None, key=key, value=value, headers=headers) is None:
                if batch is not None:
                    acknowledgements.append(await producer.send_batch(batch, topic, partition=place[1]))
                # Of one message it takes any size.
                batch = open_batches[place] = producer.create_batch()
                batch.append(timestamp=None, key=key, value=value, headers=headers)
        for (topic, partition), batch in open_batches.items():
            acknowledgements.append(await producer.send_batch(batch, topic, partition=partition))
        await asyncio.gather(*acknowledgements)

    async def _publish_routed(self, routed: Iterable[Routed]) -> None:
        """Of each partition one after the other: behind one that is missing, it would look like a duplicate."""
        producer = self._producer
        partitions = len(await producer.partitions_for(REPARTITION_TOPIC)) if routed else 0
        waiting: dict[int, list[bytes]] = {}
        for one in routed:
            origins = len(await producer.partitions_for(one.topic))
            for partition, value in to_routed_messages(one, origins, partitions):
                waiting.setdefault(partition, []).append(value)

        async def send(partition: int, values: list[bytes]) -> None:
            for value in values:
                headers = [("content-type", ROUTED.encode())]
                await producer.send_and_wait(REPARTITION_TOPIC, value, partition=partition, headers=headers)

        await asyncio.gather(*(send(*each) for each in waiting.items()))


class PostgresStore:
    """Results in `metrics.window_result` of the metrics store."""

    def __init__(self, url: str) -> None:
        from primespark.store import database

        self._engine = database.connect(url, pool_size=1)

    def open(self) -> None:
        """Migrate, under the advisory lock that all services share."""
        from primespark.store import database

        database.migrate(self._engine)

    def upsert(self, results: Sequence[WindowResult]) -> None:
        """One transaction for all."""
        from sqlalchemy import text

        from primespark.store import windows

        rows = [result.to_row() for result in results]
        with self._engine.begin() as connection:
            connection.execute(text(f"SET LOCAL statement_timeout = {_STATEMENT_TIMEOUT_MS}"))
            for start in range(0, len(rows), _ROWS_PER_STATEMENT):
                windows.upsert(connection, rows[start : start + _ROWS_PER_STATEMENT])

    def close(self) -> None:
        """Close the pool."""
        self._engine.dispose()


def to_messages(outgoing: Outgoing) -> list[Message]:
    """What `deliver` publishes: topic, key, value and headers of each message."""
    as_json = ("content-type", b"application/json")
    messages: list[Message] = []
    for topic, result in outgoing.results:
        messages.append((topic, result.key.encode(), to_json(result.to_message()), [as_json]))
    for late in outgoing.late:
        key = f"{late.rule.rule_id}|{late.topic}|{late.partition}|{late.offset}|{late.index}"
        messages.append(
            (
                late.rule.late_topic,
                key.encode(),
                json.dumps(late.row, separators=(",", ":")).encode(),
                [as_json],
            )
        )
    for letter in outgoing.dead:
        headers = {
            "code": letter.code,
            "reason": letter.reason,
            "source-topic": letter.topic,
            "source-partition": str(letter.partition),
            "source-offset": str(letter.offset),
            "source-bytes": str(len(letter.value)),
        }
        key = f"{letter.topic}|{letter.partition}|{letter.offset}"
        encoded = [(name, text.encode()) for name, text in headers.items()]
        messages.append((DEAD_LETTER_TOPIC, key.encode(), letter.value[:_MAX_DEAD_LETTER_BYTES], encoded))
    return messages
