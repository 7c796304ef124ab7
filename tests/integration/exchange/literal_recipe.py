"""The specification's recipe as it is written, to see that the laws tell it from one that holds.

A change is a hash that differs from the one in a tracker, of two changes the later by the wall clock wins, nothing
remembers a deletion, and the tracker is brought up to date after the transfer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Item:
    """A value, when it was written by the writer's clock, and the numbers of the writes its maker had seen."""

    value: Mapping[str, Any]
    written_at: int
    seen: frozenset[int]


@dataclass(slots=True)
class Replica:
    """One side: what it holds, and of each key the hash it last agreed on with its peer."""

    items: dict[str, Item] = field(default_factory=dict)
    tracker: dict[str, str] = field(default_factory=dict)

    def write(self, key: str, value: Mapping[str, Any], now: int, number: int) -> frozenset[int]:
        """Write or, with an empty value, delete; what the writer had seen."""
        seen = self.items[key].seen if key in self.items else frozenset()
        if value:
            self.items[key] = Item(value, now, seen | {number})
        else:
            self.items.pop(key, None)
        return seen


def synchronise(edge: Replica, cloud: Replica, *, is_cut_off: bool) -> None:
    """Compare hashes and copy; with `is_cut_off` the connection ends after the transfer, before the tracker."""
    for key in sorted(edge.items.keys() | cloud.items.keys()):
        ours, theirs = edge.items.get(key), cloud.items.get(key)
        known = edge.tracker.get(key)
        if ours is None or theirs is None:
            winner = ours or theirs
        elif _hash(ours) == _hash(theirs):
            winner = ours
        elif _hash(ours) == known:
            winner = theirs
        elif _hash(theirs) == known:
            winner = ours
        else:
            winner = max(ours, theirs, key=lambda item: item.written_at)
        assert winner is not None
        edge.items[key] = cloud.items[key] = winner
        if not is_cut_off:
            edge.tracker[key] = _hash(winner)


def _hash(item: Item) -> str:
    return hashlib.sha256(json.dumps(item.value, sort_keys=True).encode()).hexdigest()
