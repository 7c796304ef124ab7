"""Watermarks: how far event time has come, per partition or per group; never back."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from primespark.windows.columns import Integers

# Below every event time: a partition or group that has seen no record.
NEVER = -(2**63)


class KeyWatermark:
    """The watermark of one group: its largest event time less the allowed disorder."""

    __slots__ = ("_disorder_ms", "value")

    def __init__(self, disorder_ms: int, value: int = NEVER) -> None:
        self._disorder_ms = disorder_ms
        self.value = value

    def observe(self, event_ms: int) -> bool:
        """Take in the time of a record already added; True if the watermark advanced."""
        reached = event_ms - self._disorder_ms
        if reached <= self.value:
            return False
        self.value = reached
        return True


class _Partition:
    __slots__ = ("active_at_ms", "largest_ms", "watermark")

    def __init__(self, largest_ms: int, watermark: int, active_at_ms: int) -> None:
        self.largest_ms = largest_ms
        self.watermark = watermark
        self.active_at_ms = active_at_ms


class PartitionWatermarks:
    """The common watermark of the partitions at hand: the minimum over those that are not idle.

    Each partition keeps the value it reached, so one that comes from another worker goes on where it was. While all
    are idle the watermark stands still.
    """

    def __init__(self, disorder_ms: int, idle_timeout_ms: int | None) -> None:
        self._disorder_ms = disorder_ms
        self._idle_timeout_ms = idle_timeout_ms
        self._partitions: dict[int, _Partition] = {}

    def assign(self, partition: int, clock_ms: int) -> None:
        """Add a partition without history; it holds the watermark back until its first record or until idle."""
        self._partitions[partition] = _Partition(NEVER, NEVER, clock_ms)

    def restore(self, partition: int, state: list[int], active_at_ms: int | None) -> None:
        """Add a partition as `state_of` wrote it; `active_at_ms` restarts its idle time, by whatever clock that was."""
        largest_ms, watermark, saved_active_at_ms = state
        active = saved_active_at_ms if active_at_ms is None else active_at_ms
        self._partitions[partition] = _Partition(largest_ms, watermark, active)

    def revoke(self, partition: int) -> None:
        """Forget a partition."""
        self._partitions.pop(partition, None)

    def state_of(self, partition: int) -> list[int]:
        """A JSON list that `restore` takes."""
        entry = self._partitions[partition]
        return [entry.largest_ms, entry.watermark, entry.active_at_ms]

    def of(self, partition: int) -> int:
        """The watermark as `partition` sees it."""
        return self._partitions[partition].watermark

    def least(self) -> int:
        """The watermark of the partition furthest behind of those that have one."""
        return min((one.watermark for one in self._partitions.values() if one.watermark != NEVER), default=NEVER)

    def observe(self, partition: int, event_ms: int, clock_ms: int) -> bool:
        """Take in the time of a record already added; True if some partition's watermark advanced."""
        entry = self._partitions[partition]
        entry.active_at_ms = clock_ms
        entry.largest_ms = max(entry.largest_ms, event_ms)
        return self.advance(clock_ms)

    def observe_all(self, partition: int, event_times: Integers, clock_ms: int) -> Integers:
        """Take in the times of records already added, at least one; the common watermark after each of them."""
        import numpy as np

        entry = self._partitions[partition]
        before_ms = entry.largest_ms
        self.observe(partition, int(event_times.max()), clock_ms)
        others = [
            NEVER if other.largest_ms == NEVER else other.largest_ms - self._disorder_ms
            for other in self._partitions.values()
            if other is not entry and not self._is_idle(other, clock_ms)
        ]
        bound = min(others, default=-NEVER - 1)
        if self._is_idle(entry, clock_ms):
            return np.full(len(event_times), bound if others else NEVER)
        largest = np.maximum(np.maximum.accumulate(event_times), before_ms)
        reached: Integers = np.minimum(largest - self._disorder_ms, bound)
        return reached

    def advance(self, clock_ms: int) -> bool:
        """Recompute with the clock at `clock_ms`; True if some partition's watermark advanced."""
        reached: int | None = None
        for entry in self._partitions.values():
            if self._is_idle(entry, clock_ms):
                continue
            own = NEVER if entry.largest_ms == NEVER else entry.largest_ms - self._disorder_ms
            reached = own if reached is None else min(reached, own)
        advanced = False
        if reached is not None:
            for entry in self._partitions.values():
                if reached > entry.watermark:
                    entry.watermark = reached
                    advanced = True
        return advanced

    def _is_idle(self, entry: _Partition, clock_ms: int) -> bool:
        return self._idle_timeout_ms is not None and clock_ms - entry.active_at_ms >= self._idle_timeout_ms
