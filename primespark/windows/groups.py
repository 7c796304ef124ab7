"""What a rule keeps of one group, and the shape of its windows."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from primespark.windows.aggregates import AggregationFunction
from primespark.windows.firing import GroupWindows, Part
from primespark.windows.panes import PaneShape, PaneWindows
from primespark.windows.reading import Group
from primespark.windows.rules import AggregationRule, WindowType
from primespark.windows.sessions import SessionShape, SessionWindows
from primespark.windows.watermark import KeyWatermark

# Of what `snapshot` writes for a rule; what an earlier one wrote is not taken up.
_STATE_VERSION = 3


@dataclass(slots=True)
class GroupState:
    """The windows of a group and its watermark, which counts where each group has its own."""

    windows: GroupWindows
    watermark: KeyWatermark


_NOTHING: frozenset[int] = frozenset()


class TouchedGroups:
    """By partition, the groups that differ from when they were last taken, those forgotten since included."""

    def __init__(self) -> None:
        # Of each group where parts of it went before it was forgotten, perhaps to begin anew.
        self._groups: defaultdict[int, dict[Group, frozenset[int]]] = defaultdict(dict)
        self._new: set[int] = set()

    def begin(self, partition: int) -> None:
        """A partition starts without history: what was known of it before counts no more."""
        self._groups.pop(partition, None)
        self._new.add(partition)

    def forget(self, partition: int) -> None:
        """A partition goes, or is as it was written."""
        self._groups.pop(partition, None)
        self._new.discard(partition)

    def add(self, partition: int, group: Group) -> None:
        """A group is about to change."""
        self._groups[partition].setdefault(group, _NOTHING)

    def drop(self, partition: int, group: Group, state: GroupState) -> None:
        """A group is forgotten, whose windows are no more."""
        _, gone = state.windows.take_changed_parts()
        groups = self._groups[partition]
        groups[group] = groups.get(group, _NOTHING) | gone

    def take(self, partition: int, states: Mapping[Group, GroupState]) -> dict[str, Any]:
        """Those of a partition as JSON values, whose state now is `states`."""
        touched = self._groups.pop(partition, {})
        is_whole = partition in self._new
        self._new.discard(partition)
        return {
            "is_whole": is_whole,
            "groups": [_changes(group, states[group], gone) for group, gone in touched.items() if group in states],
            "removed": [[list(group), sorted(gone)] for group, gone in touched.items() if group not in states],
        }


def fingerprint_of(rule: AggregationRule) -> str:
    """Digest of the definition; state written under another is not taken up."""
    definition = rule.model_dump_json(exclude_defaults=True)
    return hashlib.sha256(f"{_STATE_VERSION} {definition}".encode()).hexdigest()


def shape_of(rule: AggregationRule) -> PaneShape | SessionShape:
    """How the windows of a rule lie."""
    config = rule.window_config
    with_quantiles = rule.aggregation_function is AggregationFunction.PERCENTILE
    if config.window_type is WindowType.SESSION:
        return SessionShape(config.session_gap_ms, config.allowed_lateness_ms, with_quantiles)
    return PaneShape(
        config.size_ms, config.slide_ms, config.offset_ms, config.allowed_lateness_ms, with_quantiles
    )  # fmt: skip


def new_windows(shape: PaneShape | SessionShape) -> GroupWindows:
    """Windows of this shape, none yet."""
    return SessionWindows(shape) if isinstance(shape, SessionShape) else PaneWindows(shape)


def saved_windows(shape: PaneShape | SessionShape, head: Any, parts: list[Part]) -> GroupWindows:
    """Windows of this shape that were written as `to_state` does."""
    if isinstance(shape, SessionShape):
        return SessionWindows.from_state(shape, parts)
    return PaneWindows.from_state(shape, head, parts)


def panes_of(state: GroupState) -> PaneWindows:
    """The windows of a group whose rule has a shape of panes."""
    return cast(PaneWindows, state.windows)


def to_state(group: Group, state: GroupState) -> list[Any]:
    """A group as JSON values: its names, its watermark, its windows."""
    return [list(group), state.watermark.value, state.windows.head(), state.windows.parts()]


def _changes(group: Group, state: GroupState, gone_before: frozenset[int]) -> list[Any]:
    """The same with changed parts alone, and where others went."""
    parts, gone = state.windows.take_changed_parts()
    removed = (gone_before | gone).difference(part[0] for part in parts)
    return [list(group), state.watermark.value, state.windows.head(), parts, sorted(removed)]
