"""Streams of facts: how urgent each is, what gives way to it when the queue is full, and where its facts lie.

A fact's id is its place in the file: the lane in the upper bits, the order of coming in the lower. So the table is its
own index, and what goes first lies first. A stream has one priority while anything of it waits, since the cloud takes
a stream in order only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from edge_agent.priority import RANKS, Priority
from primespark.core.settings import StreamSettings

# Facts of a stream that has fallen behind go on in its twin, which goes first: what happens now need not wait for what
# happened while there was no link.
LIVE = ".live"
LANES = 2 * len(Priority)
_LANE_SHIFT = 56


class OnFull(StrEnum):
    """What a stream does when the queue is full."""

    REJECT = "reject"
    DROP_OLDEST = "drop_oldest"
    DROP_LOWEST = "drop_lowest"


@dataclass(frozen=True, slots=True)
class StreamPolicy:
    """How a stream is treated."""

    rank: int
    on_full: OnFull


_DEFAULTS = {"labels": Priority.HIGH, "events": Priority.HIGH, "telemetry": Priority.LOW}


class StreamPolicies:
    """The policy of each stream; where the settings are silent: labels and events high, telemetry low, others normal.

    Args:
        settings: By stream.
    """

    def __init__(self, settings: Sequence[StreamSettings] = ()) -> None:
        self._given = {entry.stream: entry for entry in settings}

    def of(self, stream: str) -> StreamPolicy:
        """The policy of a stream, and of its twin."""
        name = stream.removesuffix(LIVE)
        given = self._given.get(name)
        if given is None:
            return StreamPolicy(RANKS[_DEFAULTS.get(name, Priority.NORMAL)], OnFull.REJECT)
        return StreamPolicy(RANKS[Priority(given.priority)], OnFull(given.on_full))


def lane_of(rank: int, stream: str) -> int:
    """Within a priority, twins go first."""
    return 2 * rank + (0 if stream.endswith(LIVE) else 1)


def bounds(lane: int) -> tuple[int, int]:
    """The ids of a lane: from, and up to but without."""
    return lane << _LANE_SHIFT, (lane + 1) << _LANE_SHIFT


def lane_at(operation_id: int) -> int:
    """The lane of an operation."""
    return operation_id >> _LANE_SHIFT
