"""Reading a small topic whole, and then what is added to it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from primespark.errors import UnavailableError

if TYPE_CHECKING:
    from aiokafka import AIOKafkaConsumer, TopicPartition

_READ_TIMEOUT_MS = 500
_DEADLINE_S = 20.0


@dataclass(frozen=True, slots=True)
class TopicRecord:
    """A key and what it now has; `None`: it is deleted."""

    key: bytes
    value: bytes | None


class TopicTail:
    """The first partition of a topic from its beginning on; an async context.

    It fetches only when asked and something is there: the bundled broker answers an idle fetch at once, so a consumer
    left alone would ask it without a pause.
    """

    def __init__(self, bootstrap_servers: str, topic: str, client_id: str) -> None:
        self._bootstrap_servers = bootstrap_servers
        self._topic = topic
        self._client_id = client_id
        self._consumer: AIOKafkaConsumer
        self._partition: TopicPartition
        self._next_offset = 0

    async def __aenter__(self) -> Self:
        from aiokafka import AIOKafkaConsumer, TopicPartition

        self._partition = TopicPartition(self._topic, 0)
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._bootstrap_servers, client_id=self._client_id, enable_auto_commit=False,
            auto_offset_reset="earliest",
        )  # fmt: skip
        await self._consumer.start()
        self._consumer.assign([self._partition])
        self._consumer.pause(self._partition)
        await self._consumer.seek_to_beginning(self._partition)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._consumer.stop()

    async def read_to_end(self) -> list[TopicRecord]:
        """What was written since the last call, in order, up to the end as it is now; at first all there is.

        Raises:
            UnavailableError: The broker is silent; code `topic_made_anew`: the topic has lost what was read.
            KafkaError: The broker refuses.
        """
        found: list[TopicRecord] = []
        try:
            async with asyncio.timeout(_DEADLINE_S):
                end = (await self._consumer.end_offsets([self._partition]))[self._partition]
                if end < self._next_offset:
                    raise UnavailableError(f"{self._topic} ends before what was read of it", code="topic_made_anew")
                while await self._consumer.position(self._partition) < end:
                    self._consumer.resume(self._partition)
                    for records in (await self._consumer.getmany(timeout_ms=_READ_TIMEOUT_MS)).values():
                        found += [TopicRecord(record.key or b"", record.value) for record in records]
                self._next_offset = end
        except TimeoutError:
            raise UnavailableError(f"{self._topic} could not be read in {_DEADLINE_S:.0f} s") from None
        finally:
            self._consumer.pause(self._partition)
        return found
