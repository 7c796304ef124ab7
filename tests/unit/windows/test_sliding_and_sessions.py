"""The meaning of sliding windows and sessions by example."""

from __future__ import annotations

from typing import Any

from primespark.windows.records import Batch
from tests.unit.windows.histories import TOPIC, make_engine, make_rule
from tests.unit.windows.test_tumbling import KEY, at

SLIDING = {**KEY, "window_type": "sliding", "size_seconds": 60, "slide_seconds": 30}
SESSION = {**KEY, "window_type": "session", "session_gap_seconds": 10}
Told = tuple[int, int, float | None, int, str, int]


class Fed:
    def __init__(self, window: dict[str, Any], **fields: Any) -> None:
        self.engine = make_engine(make_rule(window, **fields))
        self._offset = 0

    def rows(self, *items: dict[str, Any]) -> list[Told]:
        output = self.engine.process(Batch(TOPIC, 0, self._offset, items), 0)
        self._offset += 1
        return [
            (one.window_start, one.window_end, one.value, one.count, one.kind.value, one.revision)
            for one in output.results
        ]  # fmt: skip

    @property
    def late(self) -> int:
        return self.engine.counters["r"].late_dropped


def test_a_record_is_in_each_window_over_it() -> None:
    fed = Fed(SLIDING)
    assert fed.rows(at(10_000, 1), at(40_000, 2)) == [(-30_000, 30_000, 1.0, 1, "final", 1)]
    assert fed.rows(at(100_000, 4)) == [(0, 60_000, 3.0, 2, "final", 1), (30_000, 90_000, 2.0, 1, "final", 1)]


def test_a_record_late_for_one_window_counts_once_and_in_the_others() -> None:
    fed = Fed({**SLIDING, "allowed_lateness_seconds": 0})
    fed.rows(at(10_000, 1), at(65_000, 2))
    assert fed.rows(at(45_000, 4)) == []
    assert fed.late == 1
    # The window from 0 has fired and is forgotten; that from 30 has both.
    assert fed.rows(at(200_000, 8)) == [(30_000, 90_000, 6.0, 2, "final", 1), (60_000, 120_000, 2.0, 1, "final", 1)]


def test_windows_need_not_be_whole_slides() -> None:
    fed = Fed({**KEY, "window_type": "sliding", "size_seconds": 5, "slide_seconds": 2})
    fed.rows(at(0, 1), at(4_999, 2))
    assert [one[:3] for one in fed.rows(at(20_000, 0))] == [
        (0, 5_000, 3.0), (2_000, 7_000, 2.0), (4_000, 9_000, 2.0),
    ]  # fmt: skip


def test_a_rate_is_by_second_of_the_window() -> None:
    fed = Fed(SLIDING, aggregation_function="rate", value_field=None)
    fed.rows(*(at(second * 1000) for second in range(30)))
    assert fed.rows(at(60_000))[-1][2] == 0.5


def test_records_a_gap_apart_belong_together_and_further_ones_do_not() -> None:
    fed = Fed(SESSION)
    assert fed.rows(at(0, 1), at(10_000, 2), at(20_001, 4)) == [(0, 20_000, 3.0, 2, "final", 1)]


def test_a_late_record_that_joins_sessions_takes_back_what_was_said() -> None:
    fed = Fed(SESSION)
    assert fed.rows(at(0, 1), at(15_000, 2), at(60_000, 0)) == [
        (0, 10_000, 1.0, 1, "final", 1), (15_000, 25_000, 2.0, 1, "final", 1),
    ]  # fmt: skip
    assert fed.rows(at(8_000, 4)) == [
        (0, 10_000, None, 0, "retract", 2),
        (0, 25_000, 7.0, 3, "final", 1),
        (15_000, 25_000, None, 0, "retract", 2),
    ]
    assert fed.rows(at(9_000, 8)) == [(0, 25_000, 15.0, 4, "late_update", 2)]


def test_a_record_of_a_session_long_over_is_late() -> None:
    fed = Fed({**SESSION, "allowed_lateness_seconds": 5})
    fed.rows(at(0), at(16_500))
    assert fed.rows(at(1_000)) == []
    assert fed.late == 1
    # The session that it would have been in is forgotten, the one that it begins is not over for so long.
    assert fed.rows(at(1_600, 4)) == [(1_600, 11_600, 4.0, 1, "final", 1)]
    assert fed.late == 1
