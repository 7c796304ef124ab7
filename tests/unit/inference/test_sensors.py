"""Windows over readings, against sums made one reading at a time with exact arithmetic."""

from __future__ import annotations

import math
from collections import defaultdict
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.errors import InvalidInputError
from primespark.inference.sensors import SensorWindows, sum_up

# Quarters of a second are exact, so that a reading on a border lies where it says.
times = st.integers(-4000, 4000).map(lambda quarter: quarter / 4)
readings = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf, 1e200, 0.0]))
series = st.lists(st.tuples(times, readings), max_size=60)


def expected_windows(pairs: list[tuple[float, float]], size: float) -> dict[int, tuple[int, list[Fraction]]]:
    """By number of the window: readings without a value, and the others."""
    invalid: dict[int, int] = defaultdict(int)
    valid: dict[int, list[Fraction]] = defaultdict(list)
    for time, reading in pairs:
        number = math.floor(Fraction(time) / Fraction(size))
        if math.isfinite(reading) and abs(reading) <= 1e150:
            valid[number].append(Fraction(reading))
        else:
            invalid[number] += 1
    numbers = [*valid, *invalid]
    return {one: (invalid[one], valid[one]) for one in range(min(numbers), max(numbers) + 1)} if numbers else {}


@given(series, st.sampled_from([0.25, 1.0, 7.5, 60.0]))
def test_each_window_holds_what_falls_into_it(pairs: list[tuple[float, float]], size: float) -> None:
    found = sum_up([time for time, _ in pairs], [reading for _, reading in pairs], size)
    expected = expected_windows(pairs, size)
    assert found.start_s.tolist() == [number * size for number in expected]
    for index, (invalid, valid) in enumerate(expected.values()):
        assert found.invalid[index] == invalid
        assert found.count[index] == len(valid)
        if not valid:
            assert all(np.isnan(column[index]) for column in (found.mean, found.std, found.min, found.max))
            continue
        mean = sum(valid) / len(valid)
        std = math.sqrt(sum((one - mean) ** 2 for one in valid) / len(valid))
        scale = float(max(abs(one) for one in valid))
        assert found.mean[index] == pytest.approx(float(mean), rel=1e-12, abs=1e-12 * scale)
        assert found.std[index] == pytest.approx(std, rel=1e-9, abs=1e-12 * scale)
        assert found.min[index] == float(min(valid))
        assert found.max[index] == float(max(valid))


@given(series, st.randoms())
def test_the_order_of_readings_does_not_matter(pairs: list[tuple[float, float]], random: object) -> None:
    turned = sorted(pairs, key=lambda _: random.random())  # type: ignore[attr-defined]
    one = sum_up([time for time, _ in pairs], [reading for _, reading in pairs], 10)
    other = sum_up([time for time, _ in turned], [reading for _, reading in turned], 10)
    np.testing.assert_array_equal(one.count, other.count)
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-9, atol=1e-6)
    np.testing.assert_array_equal(one.max, other.max)


def columns(found: SensorWindows) -> list[list[float]]:
    return [column.tolist() for column in (found.start_s, found.count, found.mean, found.min, found.max)]


def test_a_gap_is_seen_and_not_filled() -> None:
    found = sum_up([0, 1, 30], [1, 3, 5], 10)
    np.testing.assert_equal(
        columns(found), [[0, 10, 20, 30], [2, 0, 0, 1], [2, np.nan, np.nan, 5], [1, np.nan, np.nan, 5],
                         [3, np.nan, np.nan, 5]]
    )  # fmt: skip
    np.testing.assert_equal(found.std, [1, np.nan, np.nan, 0])


def test_small_changes_of_a_large_value_are_measured() -> None:
    found = sum_up([0, 1, 2, 3], [1e9, 1e9 + 1, 1e9, 1e9 + 1], 10)
    assert found.std[0] == pytest.approx(0.5, rel=1e-9)


def test_no_readings_have_no_windows() -> None:
    assert columns(sum_up([], [], 10)) == [[], [], [], [], []]


@pytest.mark.parametrize(
    ("given_times", "given_values", "size"),
    [
        ([0, 1], [1], 10),
        ([[0], [1]], [[1], [2]], 10),
        ([0, math.nan], [1, 2], 10),
        ([0, math.inf], [1, 2], 10),
        ([0, 1e300], [1, 2], 10),
        ([0], [1], 0),
        ([0], [1], -1),
        ([0], [1], math.nan),
        ([0], [1], math.inf),
        (["noon"], [1], 10),
        ([0], ["warm"], 10),
        ([0], [10**400], 10),
        ([0, [1]], [1, 2], 10),
    ],
)
def test_what_is_no_series_is_refused(given_times: list[float], given_values: list[float], size: float) -> None:
    with pytest.raises(InvalidInputError) as caught:
        sum_up(given_times, given_values, size)
    assert caught.value.code == "bad_series"


def test_far_too_many_windows_are_refused() -> None:
    assert len(sum_up([0, 99_999], [1, 2], 1).count) == 100_000
    with pytest.raises(InvalidInputError) as caught:
        sum_up([0, 100_000], [1, 2], 1)
    assert caught.value.code == "too_many_windows"
