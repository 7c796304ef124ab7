"""Keeps the topic of live rules as the store has them; workers read the topic alone.

Each pass reads what the topic says, then what the store says, and writes the difference. So whoever dies between a
commit and its record, or writes late, or loses the topic, leaves nothing that the next pass of any process does not
put right; there is no position to keep and no lease to hold.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from primespark.cloud.state import Cloud
from primespark.core.logging import get_logger
from primespark.core.topic_tail import TopicTail
from primespark.errors import TransientError, UnavailableError
from primespark.store import stream_rules
from primespark.windows.live_rules import RULES_TOPIC, RULES_TOPIC_CONFIG, encode_rule

_CLIENT_ID = "primespark-rules"
# What another process stored, or a record that came late, is found after this time.
_IDLE_POLL_S = 5.0
_PUBLISH_DEADLINE_S = 8.0
_RETRY_BASE_S = 0.5
_RETRY_MAX_S = 10.0
_MAX_REPLICAS = 3

log = get_logger(__name__)


class RulePublisher:
    """Publishes until cancelled; used on one event loop.

    Args:
        cloud: Store and settings.
        deadline_s: How long a request waits for the broker.
    """

    def __init__(self, cloud: Cloud, deadline_s: float = _PUBLISH_DEADLINE_S) -> None:
        self._cloud = cloud
        self._deadline_s = deadline_s
        self._servers = str(cloud.settings.cloud.kafka.bootstrap_servers)
        self._wake = asyncio.Event()
        self._settled = asyncio.Condition()
        self._number_asked = 0
        self._number_settled = 0
        self._failure = "not connected yet"

    async def run(self) -> None:
        """Publish; after a failure begin again."""
        pause_s = _RETRY_BASE_S
        while True:
            try:
                await self._publish_while_connected()
            except (KafkaError, TransientError, OSError) as error:
                if not self._failure:
                    pause_s = _RETRY_BASE_S
                self._failure = f"{type(error).__name__}: {error}"
                log.warning("rules_not_published", cause=self._failure)
            await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311 (jitter, not a secret)
            pause_s = min(pause_s * 2, _RETRY_MAX_S)

    async def publish(self) -> None:
        """Return when the broker has what is committed now.

        Raises:
            UnavailableError: Code `rules_not_published`: it has not acknowledged in time, and will be told later.
        """
        self._number_asked += 1
        mine = self._number_asked
        self._wake.set()
        try:
            async with asyncio.timeout(self._deadline_s), self._settled:
                await self._settled.wait_for(lambda: self._number_settled >= mine)
        except TimeoutError:
            raise UnavailableError(
                f"stored, but Kafka has not taken it: {self._failure or 'it is silent'}",
                remedy="see that the broker runs; workers are told when it does; the same request again waits for it",
                code="rules_not_published",
                retry_after_s=5,
            ) from None

    async def _publish_while_connected(self) -> None:
        await ensure_rules_topic(self._servers)
        producer = AIOKafkaProducer(
            bootstrap_servers=self._servers, client_id=_CLIENT_ID, enable_idempotence=True
        )  # fmt: skip
        await producer.start()
        try:
            async with TopicTail(self._servers, RULES_TOPIC, _CLIENT_ID) as tail:
                published: dict[bytes, bytes] = {}
                while True:
                    await self._pass(producer, tail, published)
        finally:
            with suppress(KafkaError):
                await producer.stop()

    async def _pass(self, producer: AIOKafkaProducer, tail: TopicTail, published: dict[bytes, bytes]) -> None:
        """Compare once, and write what differs; or wait, where nothing does."""
        self._wake.clear()
        asked = self._number_asked
        for record in await tail.read_to_end():
            if record.value is None:
                published.pop(record.key, None)
            else:
                published[record.key] = record.value
        rows = await self._cloud.transact(stream_rules.everything)
        wanted = {row.rule_id.encode(): encode_rule(row.version, row.definition) for row in rows}
        changes: dict[bytes, bytes | None] = {
            **{key: None for key in published if key not in wanted},
            **{key: value for key, value in wanted.items() if published.get(key) != value},
        }
        if changes:
            sent = [
                await producer.send(RULES_TOPIC, value, key=key, partition=0) for key, value in changes.items()
            ]  # fmt: skip
            await asyncio.gather(*sent)
            log.info("rules_published", rules=len(changes))
            return
        self._failure = ""
        async with self._settled:
            self._number_settled = asked
            self._settled.notify_all()
        with suppress(TimeoutError):
            async with asyncio.timeout(_IDLE_POLL_S):
                await self._wake.wait()


async def ensure_rules_topic(servers: str) -> None:
    """Make the topic if it is not there.

    Raises:
        UnavailableError: The broker refuses.
        KafkaError: It does not answer.
    """
    admin = AIOKafkaAdminClient(bootstrap_servers=servers, client_id=_CLIENT_ID)
    answer: Any = None
    try:
        await admin.start()
        if RULES_TOPIC not in await admin.list_topics():
            replicas = min(_MAX_REPLICAS, len((await admin.describe_cluster())["brokers"]))
            topic = NewTopic(RULES_TOPIC, 1, replicas, topic_configs=RULES_TOPIC_CONFIG)
            answer = await admin.create_topics([topic], timeout_ms=10_000)
    finally:
        with suppress(KafkaError):
            await admin.close()
    for name, code, *_ in getattr(answer, "topic_errors", ()):
        if code and for_code(code) is not TopicAlreadyExistsError:
            raise UnavailableError(f"topic {name} cannot be made: {for_code(code).__name__}", code="kafka_unavailable")
