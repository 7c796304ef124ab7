"""Which messages of a partition were taken in before: by offset, and by position in the sync log."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from primespark.windows.records import Messages, Singles


@dataclass(slots=True)
class Fence:
    """What was taken in of a partition.

    Attributes:
        next_offset: The next offset to read.
        log_seq: The highest position in the sync log.
        begun_anew: How often the topic was made anew, so that its offsets begin at 0 again.
    """

    next_offset: int = 0
    log_seq: int = -1
    begun_anew: int = 0

    def take(self, messages: Sequence[Messages]) -> tuple[list[Messages], int]:
        """Those that are new, which it moves behind, and how many rows are not."""
        fresh: list[Messages] = []
        duplicates = 0
        for batch in messages:
            if isinstance(batch, Singles):
                known = bisect_left(batch.offsets, self.next_offset)
                duplicates += known
                if known < len(batch.offsets):
                    self.next_offset = batch.offsets[-1] + 1
                    fresh.append(batch.behind(known) if known else batch)
                continue
            if batch.offset >= self.next_offset:
                self.next_offset = batch.offset + 1
                if batch.log_seq is None or batch.log_seq > self.log_seq:
                    self.log_seq = self.log_seq if batch.log_seq is None else batch.log_seq
                    fresh.append(batch)
                    continue
            duplicates += max(1, len(batch.rows))
        return fresh, duplicates
