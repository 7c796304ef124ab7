"""Rules that turn tracks into events; pure, time comes by argument."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from edge_agent.capture.geometry import contains
from edge_agent.capture.tracking import Track
from primespark.core.capture_settings import EventRule


@dataclass(frozen=True, slots=True)
class Event:
    """A rule held for an object that had stayed `duration_s` in its zone."""

    rule: EventRule
    track: Track
    duration_s: float


@dataclass(slots=True)
class _Stay:
    """An object in a rule's zone, since it was first seen there with the rule's minimum score."""

    since_s: float
    has_fired: bool = False


class RuleBook:
    """The rules of one source.

    A stay begins with the first frame that shows a track with one of the rule's labels, at least its score, and the
    middle of its box's lower edge in its zone. A lower score or a missed frame does not end it; being seen outside the
    zone does, and the end of the track. A stay fires at most once: with the first frame that qualifies as the one that
    began it does, when the stay is long enough and the rule has cooled down.

    Args:
        rules: Each fires by itself.
    """

    def __init__(self, rules: Sequence[EventRule]) -> None:
        self._rules = rules
        self._stays: dict[tuple[str, int], _Stay] = {}
        self._fired_s: dict[str, float] = {}

    def update(self, seen: Sequence[Track], alive: Collection[int], now_s: float) -> list[Event]:
        """Take a frame; the events it makes, by rule, then by track in the order given.

        Args:
            seen: Tracks that the frame shows.
            alive: Ids of these and of tracks that may be continued.
            now_s: Monotonic time of the frame.
        """
        self._stays = {key: stay for key, stay in self._stays.items() if key[1] in alive}
        events = (self._apply(rule, track, now_s) for rule in self._rules for track in seen)
        return [event for event in events if event is not None]

    def _apply(self, rule: EventRule, track: Track, now_s: float) -> Event | None:
        key = rule.name, track.track_id
        if not _is_in_zone(rule, track):
            self._stays.pop(key, None)
            return None
        if track.detection.label not in rule.labels or track.detection.score < rule.minimum_score:
            return None
        stay = self._stays.setdefault(key, _Stay(now_s))
        duration_s = now_s - stay.since_s
        if stay.has_fired or duration_s < rule.minimum_duration_s or not self._is_cool(rule, now_s):
            return None
        stay.has_fired = True
        self._fired_s[rule.name] = now_s
        return Event(rule, track, duration_s)

    def _is_cool(self, rule: EventRule, now_s: float) -> bool:
        fired_s = self._fired_s.get(rule.name)
        return fired_s is None or now_s - fired_s >= rule.cool_down_s


def _is_in_zone(rule: EventRule, track: Track) -> bool:
    return rule.zone is None or contains(rule.zone, track.detection.box.foot)
