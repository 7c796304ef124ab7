"""What the worker takes in, and what it needs of the consumer group, the sink and the snapshots."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from primespark.windows.engine import Partition
from streams.decode import Record
from streams.sink import Outgoing


@dataclass(frozen=True, slots=True)
class Incoming:
    """Messages of one partition, at least one, as one read of its log gave them.

    Attributes:
        records: In order of their offsets; what is missing between two of them is missing in the log.
        generation: That of the group when they were read.
    """

    topic: str
    partition: int
    records: Sequence[Record]
    generation: int | None


class Source(Protocol):
    """What the worker needs of the consumer group."""

    def generation(self) -> int | None:
        """The present generation of the group."""

    async def seek(self, topic: str, partition: int, offset: int) -> None:
        """Read on from `offset`."""

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commit next offsets; those of partitions no longer at hand are dropped."""


class ResultSink(Protocol):
    """What the worker needs of the place results go to."""

    async def open(self) -> None:
        """Prepare; repeated until it succeeds."""

    async def deliver(self, outgoing: Outgoing) -> None:
        """Deliver all of it; may be repeated with the same or with parts of the same."""


class Snapshots(Protocol):
    """What the worker needs of the place snapshots are kept in."""

    @property
    def refused(self) -> int:
        """Records of writers whose time was over, as far as the loaded partitions were read."""

    async def write(self, changes: Mapping[str, Any]) -> int:
        """Store durably what changed in a loaded partition; returns the size in bytes; ConflictError: taken over."""

    async def load(self, partitions: Collection[Partition]) -> dict[Partition, dict[str, Any]]:
        """Take the partitions over; the last snapshot of each that has one."""

    async def first_offset_from(self, topic: str, partition: int, offset: int) -> int | None:
        """The offset of the first record at or after `offset`; None if there is none."""

    async def trim(self) -> None:
        """Delete superseded snapshots where that is needed."""
