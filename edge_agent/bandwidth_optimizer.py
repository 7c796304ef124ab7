"""What goes first, packed, and no faster than the link is to carry, for a program beside the agent."""

from __future__ import annotations

from collections.abc import Iterable

from edge_agent.bandwidth import Bandwidth
from edge_agent.sync_records import DataType, SyncRecord
from primespark.core.encoding import encode_body

_ORDER = {data_type: place for place, data_type in enumerate(DataType)}


class BandwidthOptimizer:
    """Order, compression and pace.

    Args:
        bandwidth: The limit; the agent keeps one of its own.
    """

    def __init__(self, bandwidth: Bandwidth) -> None:
        self._bandwidth = bandwidth

    @property
    def limit_bytes_per_s(self) -> int | None:
        """The limit of this moment; None without one."""
        return self._bandwidth.limit()

    def prioritize(self, records: Iterable[SyncRecord]) -> list[SyncRecord]:
        """By type, in the order of `DataType`; within one type the smaller first, then the older."""
        return sorted(records, key=lambda record: (_ORDER[record.data_type], record.size_bytes, record.version))

    def compress(self, payload: bytes) -> tuple[bytes, dict[str, str]]:
        """As a batch is packed, with the headers that tell so: what is short goes as it is."""
        return encode_body(payload)

    async def throttle(self, size_bytes: int) -> None:
        """Wait until so many bytes may be sent."""
        await self._bandwidth.sent(size_bytes)
