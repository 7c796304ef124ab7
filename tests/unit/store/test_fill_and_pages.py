"""Empty buckets, and answers in pages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.errors import InvalidInputError
from primespark.store.analytics.fill import Fill, filled
from primespark.store.analytics.pages import page
from primespark.store.analytics.queries import group_key
from primespark.store.analytics.series import to_microseconds
from tests.series import series_of

T0 = datetime(2026, 3, 1, tzinfo=UTC)
STARTS = [T0 + timedelta(hours=hour) for hour in range(6)]
SERIES = series_of({}, [(STARTS[1], [1.0, None]), (STARTS[4], [4.0, 2.0])])


@pytest.mark.parametrize(
    ("fill", "first", "second"),
    [
        (Fill.NULL, [None, 1.0, None, None, 4.0, None], [None, None, None, None, 2.0, None]),
        (Fill.ZERO, [0.0, 1.0, 0.0, 0.0, 4.0, 0.0], [0.0, None, 0.0, 0.0, 2.0, 0.0]),
        (Fill.PREVIOUS, [None, 1.0, 1.0, 1.0, 4.0, 4.0], [None, None, None, None, 2.0, 2.0]),
        (Fill.LINEAR, [None, 1.0, 2.0, 3.0, 4.0, None], [None, None, None, None, 2.0, None]),
    ],
)
def test_what_stands_for_an_empty_bucket(fill: Fill, first: list[float | None], second: list[float | None]) -> None:
    starts = [to_microseconds(moment) for moment in STARTS]
    answer = list(filled(SERIES, starts, fill).points())
    assert [moment for moment, _ in answer] == STARTS
    assert [values[0] for _, values in answer] == pytest.approx(first)
    assert [values[1] for _, values in answer] == pytest.approx(second)
    assert filled(SERIES, starts, Fill.NONE) is SERIES


names = st.one_of(st.none(), st.text(max_size=3))


@given(
    st.dictionaries(st.tuples(names, names), st.lists(st.integers(0, 50), unique=True, max_size=5), max_size=5),
    st.integers(1, 7),
    st.booleans(),
)
def test_pages_together_are_the_answer(
    groups: dict[tuple[str | None, str | None], list[int]], limit: int, newest_first: bool
) -> None:
    answer = sorted(
        (
            series_of({"a": a, "b": b}, [(T0 + timedelta(seconds=n), [float(n)]) for n in sorted(numbers)])
            for (a, b), numbers in groups.items()
        ),
        key=group_key,
    )
    expected = [(one.group, p) for one in answer for p in (one.reversed() if newest_first else one).points()]
    found: list[object] = []
    cursor: str | None = None
    for _ in range(len(expected) + 1):
        some, cursor = page(answer, limit, cursor, newest_first=newest_first)
        here = [(one.group, point) for one in some for point in one.points()]
        assert len(here) == limit or cursor is None
        found += here
        if cursor is None:
            break
    assert found == expected


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "é", "W10=", "WzEsMl0=", "bnVsbA==", "W1tbMSwyXV0sMF0=", "W1tbdHJ1ZV1dLDBd", "WyJhYiIsIDFd" * 400],
)
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        page([series_of({}, [(T0, [1.0])])], 1, cursor)
    assert caught.value.code == "bad_cursor"
