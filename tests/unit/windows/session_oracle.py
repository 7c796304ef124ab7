"""What sessions must say: at each step all records of a device are put in order and cut at the gaps anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from primespark.windows.rules import AggregationRule
from tests.unit.windows.oracle import Step, watermark


@dataclass(frozen=True, slots=True)
class SaidOfSession:
    """One result; no values: the session is taken back."""

    device: str
    start: int
    end: int
    revision: int
    kind: str
    values: tuple[float, ...]


def run(rule: AggregationRule, steps: Sequence[Step]) -> tuple[list[list[SaidOfSession]], int]:
    """What each step says, and how many rows come too late."""
    config = rule.window_config
    future = {
        number
        for number, step in enumerate(steps)
        if config.max_future_ms is not None and step.ts > step.clock_ms + config.max_future_ms
    }
    devices = {step.device: _Device(rule, step.device) for step in steps if step.partition is not None}
    told = []
    late = 0
    for number, step in enumerate(steps):
        said = []
        if step.partition is not None and number not in future:
            before = watermark(rule, steps, future, number - 1, step.device)
            taken, anew = devices[step.device].take(number, steps, before)
            late += not taken
            said += anew
        for name, device in devices.items():
            # By key, time goes by for whom something came.
            if config.watermark_scope == "partition" or name == step.device:
                said += device.pass_time(steps, watermark(rule, steps, future, number, name))
        told.append(sorted(said, key=lambda one: (one.end, one.start, (one.device,))))
    return told, late


class _Device:
    def __init__(self, rule: AggregationRule, name: str) -> None:
        self._gap = rule.window_config.session_gap_ms
        self._lateness = rule.window_config.allowed_lateness_ms
        self._name = name
        self._open: list[int] = []
        self._revisions: dict[tuple[int, int], int] = {}

    def take(self, number: int, steps: Sequence[Step], before: int | None) -> tuple[bool, list[SaidOfSession]]:
        with_it = next(one for one in self._sessions([*self._open, number], steps) if number in one)
        if self._is_over(self._span(with_it, steps), before):
            return False, []
        self._open.append(number)
        spans = {self._span(one, steps): one for one in self._sessions(self._open, steps)}
        said = []
        for span, revision in list(self._revisions.items()):
            if span not in spans:
                said.append(SaidOfSession(self._name, *span, revision + 1, "retract", ()))
                del self._revisions[span]
            elif number in spans[span]:
                said.append(self._say(span, spans[span], steps, "late_update"))
        return True, said

    def pass_time(self, steps: Sequence[Step], now: int | None) -> list[SaidOfSession]:
        said = []
        for members in self._sessions(self._open, steps):
            span = self._span(members, steps)
            if now is not None and now >= span[1] and span not in self._revisions:
                said.append(self._say(span, members, steps, "final"))
            if self._is_over(span, now):
                self._open = [number for number in self._open if number not in members]
                del self._revisions[span]
        return said

    def _sessions(self, numbers: list[int], steps: Sequence[Step]) -> list[list[int]]:
        found: list[list[int]] = []
        for number in sorted(numbers, key=lambda one: (steps[one].ts, one)):
            if found and steps[number].ts - steps[found[-1][-1]].ts <= self._gap:
                found[-1].append(number)
            else:
                found.append([number])
        return found

    def _span(self, members: list[int], steps: Sequence[Step]) -> tuple[int, int]:
        return steps[members[0]].ts, steps[members[-1]].ts + self._gap

    def _is_over(self, span: tuple[int, int], now: int | None) -> bool:
        return now is not None and self._lateness is not None and now >= span[1] + self._lateness

    def _say(self, span: tuple[int, int], members: list[int], steps: Sequence[Step], kind: str) -> SaidOfSession:
        revision = self._revisions[span] = self._revisions.get(span, 0) + 1
        return SaidOfSession(self._name, *span, revision, kind, tuple(steps[number].value for number in members))
