"""Faust's Kafka driver, made to hand over what it read of a partition at once as one message.

Faust works some 60 microseconds on each message it hands over, whatever is in it; the work on a record here is a
fraction of that. Only for apps whose topics are all taken in like this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from faust.transport.drivers.aiokafka import Consumer, Transport
from faust.transport.utils import DefaultSchedulingStrategy

# A chunk is the least that is held in memory, so its size is bounded; one record may be larger.
_MAX_CHUNK_BYTES = 1024 * 1024


class ChunkScheduler(DefaultSchedulingStrategy):
    """Takes turns between topics and partitions chunk by chunk."""

    def iterate(self, records: Mapping[Any, Sequence[Any]]) -> Iterator[tuple[Any, Any]]:
        """Each chunk with its partition."""
        turns: Iterator[tuple[Any, Any]] = super().iterate({tp: list(chunks(read)) for tp, read in records.items()})
        return turns


class ChunkConsumer(Consumer):
    """Makes one message of a chunk: its value is the records as aiokafka read them, its offset that of the last."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scheduler = ChunkScheduler()  # type: ignore[abstract]

    def _to_message(self, tp: Any, record: Any) -> Any:
        message = super()._to_message(tp, record[-1])
        message.value = record
        return message


class ChunkTransport(Transport):
    """The driver with this consumer."""

    Consumer = ChunkConsumer


def chunks(records: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Records in order, in as few pieces as their bytes allow."""
    start, size = 0, 0
    for position, record in enumerate(records):
        length = len(record.value or b"")
        if size and size + length > _MAX_CHUNK_BYTES:
            yield records[start:position]
            start, size = position, 0
        size += length
    yield records[start:]
