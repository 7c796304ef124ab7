"""Snapshots of partitions in a compacted Kafka topic, and what has to be asked of the log beside the consumer group.

Partition P of any topic has its chain (`streams.chain`) in partition P of the snapshot topic. Source topics and the
snapshot topic have the same number of partitions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from primespark.core.logging import get_logger
from primespark.core.settings import KafkaSettings
from primespark.windows.engine import Partition
from streams.chain import ChainReader
from streams.chain_writer import ChainWriter
from streams.topics import SNAPSHOT_TOPIC, require_bootstrap_servers

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
        self._readers: dict[Partition, ChainReader] = {}
        self._writers: dict[Partition, ChainWriter] = {}
        # Of each partition of the snapshot topic: up to where its records were given to the readers.
        self._read_to: dict[int, int] = {}
        self._trim_at = time.monotonic() + _TRIM_INTERVAL_S

    @property
    def refused(self) -> int:
        """Records of writers whose time was over, as far as the loaded partitions were read."""
        return sum(reader.refused for reader in self._readers.values())

    async def load(self, partitions: Collection[Partition]) -> dict[Partition, dict[str, Any]]:
        """Claim the partitions; the last snapshot of each that has one, cut back to the end of a shorter topic.

        A topic made anew starts at offset 0 again, where the old offsets would hide its records; their `log_seq` still
        tells those already counted.

        Raises:
            ConflictError: Another worker claimed one at the same time.
            IntegrityError: A snapshot is damaged.
        """
        self._readers = {partition: ChainReader(*partition) for partition in partitions}
        self._writers = {}
        self._read_to = dict.fromkeys((number for _, number in partitions), 0)
        if not partitions:
            return {}
        async with self._consumer() as consumer:
            await self._read(consumer)
            self._writers = writers = {key: ChainWriter(reader) for key, reader in self._readers.items()}
            for key, writer in writers.items():
                await self._send(key, [writer.claim])
            await self._read(consumer)
            ends = await consumer.end_offsets([TopicPartition(*partition) for partition in partitions])
        found = {}
        for (topic, partition), writer in writers.items():
            state = await asyncio.to_thread(writer.begin)
            if state is None:
                continue
            snapshot = await asyncio.to_thread(state.to_snapshot)
            end = ends[TopicPartition(topic, partition)]
            if snapshot["next_offset"] > end:
                log.warning("topic_shorter_than_snapshot", topic=topic, partition=partition, end_offset=end)
                snapshot |= {"next_offset": end, "begun_anew": snapshot.get("begun_anew", 0) + 1}
            found[topic, partition] = snapshot
        return found

    async def write(self, changes: Mapping[str, Any]) -> int:
        """Store durably what changed in a partition that was loaded; returns the size in bytes.

        Now and then this writes its whole state, and deletes what that supersedes.

        Raises:
            ConflictError: Another worker has taken the partition over.
            KafkaError: The broker did not take it; may be repeated.
        """
        key = changes["topic"], int(changes["partition"])
        writer = self._writers[key]
        records, is_whole = await asyncio.to_thread(writer.write, changes)
        await self._send(key, records)
        writer.acknowledge()
        if is_whole:
            await self._delete_superseded(key, writer)
        return sum(len(value) for _, value in records)

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
        """Let the embedded broker forget superseded snapshots, which it does not by itself; now and then."""
        if not self._kafka.embedded or time.monotonic() < self._trim_at or not self._read_to:
            return
        self._trim_at = time.monotonic() + _TRIM_INTERVAL_S
        admin = AIOKafkaAdminClient(bootstrap_servers=require_bootstrap_servers(self._kafka))
        await admin.start()
        try:
            # All records of a partition before the oldest one that still counts.
            async with self._consumer() as consumer:
                oldest = await _oldest_live_offsets(consumer, self._read_to)
            await admin.delete_records({tp: RecordsToDelete(before_offset=offset) for tp, offset in oldest.items()})
        finally:
            await admin.close()

    async def _send(self, partition: Partition, records: list[tuple[bytes, bytes]]) -> None:
        """One after the other: what a killed worker has begun ends at some record, and none after it is there."""
        for key, value in records:
            await self._producer.send_and_wait(SNAPSHOT_TOPIC, value, key=key, partition=partition[1])

    async def _read(self, consumer: AIOKafkaConsumer) -> None:
        """Give the readers what is new in the log."""
        readers, read_to = self._readers, self._read_to
        async for record in _records(consumer, dict(read_to)):
            read_to[record.partition] = record.offset + 1
            for (_topic, number), reader in readers.items():
                if number == record.partition:
                    reader.take(record.key, record.value)

    async def _delete_superseded(self, partition: Partition, writer: ChainWriter) -> None:
        """Delete by name what came before the whole snapshot, once the log says that this counts."""
        async with self._consumer() as consumer:
            await self._read(consumer)
        if self._writers.get(partition) is not writer:
            return
        keys = writer.superseded()
        sent = [await self._producer.send(SNAPSHOT_TOPIC, None, key=key, partition=partition[1]) for key in keys]
        await asyncio.gather(*sent)

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


async def _oldest_live_offsets(consumer: AIOKafkaConsumer, numbers: Collection[int]) -> dict[TopicPartition, int]:
    live: dict[tuple[int, bytes], int] = {}
    async for record in _records(consumer, dict.fromkeys(numbers, 0)):
        if record.value is None:
            live.pop((record.partition, record.key), None)
        else:
            live[record.partition, record.key] = record.offset
    oldest: dict[TopicPartition, int] = {}
    for (number, _key), offset in live.items():
        tp = TopicPartition(SNAPSHOT_TOPIC, number)
        oldest[tp] = min(offset, oldest.get(tp, offset))
    return oldest


async def _records(consumer: AIOKafkaConsumer, offsets: Mapping[int, int]) -> AsyncIterator[Any]:
    """The records of partitions of the snapshot topic from these offsets to the present ends."""
    starts = {TopicPartition(SNAPSHOT_TOPIC, number): offset for number, offset in offsets.items()}
    first, ends = await consumer.beginning_offsets([*starts]), await consumer.end_offsets([*starts])
    starts = {tp: max(offset, first[tp]) for tp, offset in starts.items()}
    # An empty partition would let the broker hold the answer back for all others.
    remaining = {tp for tp in starts if starts[tp] < ends[tp]}
    consumer.assign(remaining)
    for tp in remaining:
        consumer.seek(tp, starts[tp])
    while remaining := {tp for tp in remaining if await consumer.position(tp) < ends[tp]}:
        for records in (await consumer.getmany(*remaining, timeout_ms=_READ_TIMEOUT_MS)).values():
            for record in records:
                yield record
