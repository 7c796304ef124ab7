"""How far the consumer group of the stream workers is behind the ends of its topics."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaConnectionError, KafkaError, for_code
from aiokafka.structs import OffsetAndMetadata

from primespark.core.settings import KafkaSettings, Settings
from primespark.errors import UnavailableError
from primespark.windows.live_rules import configured_rules
from streams.app import APP_ID
from streams.topics import require_bootstrap_servers

_REQUEST_TIMEOUT_MS = 10_000
_COORDINATOR_PAUSES_S = (0.2, 0.4, 0.8, 1.6, 3.2)


def read_lag(settings: Settings) -> dict[str, Any]:
    """Of each partition of the rules' topics `end_offset`, `committed_offset`, `lag` in messages, and `member`.

    Beside them `lag` in all, `members`, and `missing_topics`, which nobody has made yet. None: no offset, no member.

    Raises:
        ConfigurationError: No broker is set, or the rules cannot work.
        UnavailableError: The broker does not answer.
    """
    sources = {rule.source_topic for rule in configured_rules(settings) if rule.enabled}
    kafka = settings.cloud.kafka
    try:
        return asyncio.run(_read(kafka, sources))
    except KafkaConnectionError as error:
        raise UnavailableError(f"no Kafka at {kafka.bootstrap_servers}: {error}", remedy="start the broker") from None
    except KafkaError as error:
        raise UnavailableError(f"the lag cannot be read: {error}", remedy="try again in a moment") from None


async def _read(kafka: KafkaSettings, sources: set[str]) -> dict[str, Any]:
    admin = AIOKafkaAdminClient(
        bootstrap_servers=require_bootstrap_servers(kafka), client_id=f"{APP_ID}-lag",
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
    )  # fmt: skip
    try:
        await admin.start()
        members = await _members(admin)
        owners = {partition: _name(member) for member in members for partition in _partitions_of(member)}
        committed = await admin.list_consumer_group_offsets(APP_ID)
        # Commits of rules that are gone stay for days; without a member nothing else tells of rules that were live.
        topics = sources | {topic for topic, _ in (owners if members else committed)}
        # The embedded broker makes a topic that it is asked about, of one partition.
        existing = topics & set(await admin.list_topics())
        partitions = [
            TopicPartition(entry["topic"], partition["partition"])
            for entry in (await admin.describe_topics(sorted(existing)) if existing else ())
            for partition in entry["partitions"]
        ]
    finally:
        await admin.close()
    starts, ends = await _bounds(kafka, partitions)
    rows = [_row(partition, starts, ends, committed, owners) for partition in sorted(partitions)]
    return {
        "partitions": rows,
        "lag": sum(row["lag"] for row in rows),
        "members": sorted(map(_name, members)),
        "missing_topics": sorted(topics - existing),
    }


async def _members(admin: AIOKafkaAdminClient) -> list[dict[str, Any]]:
    """The members of the group; a broker that had no group yet first makes what it keeps them in."""
    pauses_s = iter(_COORDINATOR_PAUSES_S)
    while True:
        try:
            return await _describe(admin)
        except KafkaError as error:
            pause_s = next(pauses_s, None)
            if pause_s is None or not error.retriable:
                raise
            await asyncio.sleep(pause_s)


async def _describe(admin: AIOKafkaAdminClient) -> list[dict[str, Any]]:
    (described,) = await admin.describe_consumer_groups([APP_ID])
    (group,) = described.to_object()["groups"]
    if group["error_code"]:
        raise for_code(group["error_code"])
    members: list[dict[str, Any]] = group["members"]
    return members


async def _bounds(
    kafka: KafkaSettings, partitions: list[TopicPartition]
) -> tuple[Mapping[TopicPartition, int], Mapping[TopicPartition, int]]:
    if not partitions:
        return {}, {}
    consumer = AIOKafkaConsumer(
        bootstrap_servers=require_bootstrap_servers(kafka), client_id=f"{APP_ID}-lag", enable_auto_commit=False,
        request_timeout_ms=_REQUEST_TIMEOUT_MS,
    )  # fmt: skip
    try:
        await consumer.start()
        return await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
    finally:
        await consumer.stop()


def _row(
    partition: TopicPartition,
    starts: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    committed: Mapping[TopicPartition, OffsetAndMetadata],
    owners: Mapping[TopicPartition, str],
) -> dict[str, Any]:
    offset = committed[partition].offset if partition in committed else -1
    return {
        "topic": partition.topic,
        "partition": partition.partition,
        "end_offset": ends[partition],
        "committed_offset": offset if offset >= 0 else None,
        # What is no longer kept will not be read; a topic made anew may end before the offset of the old one.
        "lag": max(ends[partition] - max(offset, starts[partition]), 0),
        "member": owners.get(partition),
    }


def _name(member: Mapping[str, Any]) -> str:
    return f"{member['client_id']} at {member['client_host'].lstrip('/')}"


def _partitions_of(member: Mapping[str, Any]) -> Iterator[TopicPartition]:
    # Empty while the group is rebalanced.
    if member["member_assignment"]:
        yield from ConsumerProtocolMemberAssignment.decode(member["member_assignment"]).partitions()
