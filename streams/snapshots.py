"""Snapshots of partitions in a compacted Kafka topic, and what has to be asked of the log beside the consumer group.

The snapshot of partition P of any topic is one message in partition P of the snapshot topic, keyed `topic|P`; the last
one counts. Source topics and the snapshot topic have the same number of partitions.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from primespark.core.encoding import compress, decompress
from primespark.core.logging import get_logger
from primespark.core.settings import KafkaSettings
from primespark.errors import TooLargeError
from primespark.windows.engine import Partition
from streams.topics import SNAPSHOT_TOPIC, require_bootstrap_servers

MAX_SNAPSHOT_BYTES = 1_000_000
# What a damaged or foreign frame may unpack to at most.
_MAX_DECODED_BYTES = 64_000_000
# A higher level than on the wire: the size of a snapshot bounds how many groups there may be.
_LEVEL = 3
_READ_TIMEOUT_MS = 500
# A partition read to its end holds the broker's answer back this long, and with it all others.
_FETCH_WAIT_MS = 20
_TRIM_INTERVAL_S = 60.0

log = get_logger(__name__)


class SnapshotStore:
    """Writes, reads and trims the snapshots of partitions."""

    def __init__(self, kafka: KafkaSettings, producer: AIOKafkaProducer) -> None:
        self._kafka = kafka
        self._producer = producer
        self._written: dict[int, int] = {}
        self._trim_at = time.monotonic() + _TRIM_INTERVAL_S

    async def write(self, snapshot: Mapping[str, Any]) -> int:
        """Store one partition's snapshot durably; returns its size in bytes.

        Raises:
            TooLargeError: Over 1 MB compressed; nothing was written.
            KafkaError: The broker did not take it.
        """
        value = await asyncio.to_thread(_encode, snapshot)
        if len(value) > MAX_SNAPSHOT_BYTES:
            raise TooLargeError(
                f"the snapshot of {snapshot['topic']} partition {snapshot['partition']} has {len(value)} bytes",
                remedy=f"more partitions, or a shorter allowed_lateness; the limit is {MAX_SNAPSHOT_BYTES} bytes",
            )
        partition = int(snapshot["partition"])
        key = f"{snapshot['topic']}|{partition}".encode()
        stored = await self._producer.send_and_wait(SNAPSHOT_TOPIC, value, key=key, partition=partition)
        self._written[partition] = stored.offset
        return len(value)

    async def load(self, partitions: Collection[Partition]) -> dict[Partition, dict[str, Any]]:
        """The last snapshot of each partition that has one; one ahead of its topic is cut back to the topic's end.

        A topic made anew starts at offset 0 again, where the old offsets would hide its records; their `log_seq` still
        tells those already counted.
        """
        if not partitions:
            return {}
        async with self._consumer() as consumer:
            last = await _scan(consumer, {partition for _, partition in partitions})
            ends = await consumer.end_offsets([TopicPartition(*partition) for partition in partitions])
        found = {}
        for topic, partition in partitions:
            _tp, _offset, value = last.get(f"{topic}|{partition}".encode(), (None, None, None))
            if value is None:
                continue
            snapshot: dict[str, Any] = json.loads(decompress(value, _MAX_DECODED_BYTES))
            end = ends[TopicPartition(topic, partition)]
            if snapshot["next_offset"] > end:
                log.warning("topic_shorter_than_snapshot", topic=topic, partition=partition, end_offset=end)
                snapshot["next_offset"] = end
            found[topic, partition] = snapshot
        return found

    async def first_offset_from(self, topic: str, partition: int, offset: int) -> int | None:
        """The offset of the first record at or after `offset`; None if there is none."""
        tp = TopicPartition(topic, partition)
        async with self._consumer() as consumer:
            consumer.assign([tp])
            start = (await consumer.beginning_offsets([tp]))[tp]
            end = (await consumer.end_offsets([tp]))[tp]
            consumer.seek(tp, max(offset, start))
            while await consumer.position(tp) < end:
                records = await consumer.getmany(tp, timeout_ms=_READ_TIMEOUT_MS, max_records=1)
                if records:
                    return int(records[tp][0].offset)
        return None

    async def trim(self) -> None:
        """Delete superseded snapshots from the embedded broker, which keeps everything in memory; now and then."""
        if not self._kafka.embedded or time.monotonic() < self._trim_at or not self._written:
            return
        self._trim_at = time.monotonic() + _TRIM_INTERVAL_S
        admin = AIOKafkaAdminClient(bootstrap_servers=require_bootstrap_servers(self._kafka))
        await admin.start()
        try:
            # All snapshots of a partition before the oldest one that still counts.
            async with self._consumer() as consumer:
                oldest = await _oldest_live_offsets(consumer, self._written)
            await admin.delete_records({tp: RecordsToDelete(before_offset=offset) for tp, offset in oldest.items()})
        finally:
            await admin.close()

    @asynccontextmanager
    async def _consumer(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=require_bootstrap_servers(self._kafka),
            client_id="primespark-streams-snapshots",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=_FETCH_WAIT_MS,
        )
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()


async def _oldest_live_offsets(consumer: AIOKafkaConsumer, partitions: Iterable[int]) -> dict[TopicPartition, int]:
    oldest: dict[TopicPartition, int] = {}
    for tp, offset, _value in (await _scan(consumer, partitions)).values():
        oldest[tp] = min(offset, oldest.get(tp, offset))
    return oldest


async def _scan(
    consumer: AIOKafkaConsumer, partitions: Iterable[int]
) -> dict[bytes, tuple[TopicPartition, int, bytes | None]]:
    """The last record of each key of the snapshot topic: where it is, and its value."""
    asked = [TopicPartition(SNAPSHOT_TOPIC, partition) for partition in partitions]
    starts = await consumer.beginning_offsets(asked)
    ends = await consumer.end_offsets(asked)
    last: dict[bytes, tuple[TopicPartition, int, bytes | None]] = {}
    # An empty partition would let the broker hold the answer back for all others.
    remaining = {tp for tp in asked if starts[tp] < ends[tp]}
    consumer.assign(remaining)
    for tp in remaining:
        consumer.seek(tp, starts[tp])
    while remaining := {tp for tp in remaining if await consumer.position(tp) < ends[tp]}:
        for tp, records in (await consumer.getmany(*remaining, timeout_ms=_READ_TIMEOUT_MS)).items():
            last.update({record.key: (tp, record.offset, record.value) for record in records})
    return last


def _encode(snapshot: Mapping[str, Any]) -> bytes:
    return compress(json.dumps(snapshot, separators=(",", ":")).encode(), _LEVEL)
