"""Quantiles: exact of few values, within 1 % of many, the same in whatever order and parts they come."""

from __future__ import annotations

import json
import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from primespark.windows.quantiles import MOST_EXACT, Quantiles, bin_value, log_bin

values = st.lists(st.floats(-1e9, 1e9) | st.sampled_from([0.0, 1e-300, -1e-300, 1.7e308]), min_size=1, max_size=300)
percentiles = st.sampled_from([0.0, 1.0, 50.0, 95.0, 99.9, 100.0])


def of(given_values: list[float]) -> Quantiles:
    found = Quantiles()
    for value in given_values:
        found.add(value)
    return found


@given(values, percentiles)
def test_a_percentile_is_within_one_percent_of_the_values_it_lies_between(
    given_values: list[float], percentile: float
) -> None:
    result = of(given_values).percentile(percentile)
    in_order = sorted(given_values)
    rank = percentile / 100 * (len(in_order) - 1)
    low, high = in_order[int(np.floor(rank))], in_order[int(np.ceil(rank))]
    slack = 0.0 if len(given_values) <= MOST_EXACT else 0.0100001
    assert result is not None
    rounding = 1e-12 * max(abs(low), abs(high))
    assert low - abs(low) * slack - rounding <= result <= high + abs(high) * slack + rounding
    if len(given_values) <= MOST_EXACT and max(map(abs, given_values)) < 1e300:
        assert np.isclose(result, np.percentile(given_values, percentile), rtol=1e-12, atol=1e-300)


@given(values, st.integers(0, 300), st.integers(0, 99), percentiles)
def test_order_and_parts_change_nothing(given_values: list[float], cut: int, seed: int, percentile: float) -> None:
    whole = of(given_values)
    shuffled = list(given_values)
    random.Random(seed).shuffle(shuffled)
    left, right = of(shuffled[:cut]), of(shuffled[cut:])
    before = right.to_state()
    left.merge(Quantiles.from_state(json.loads(json.dumps(right.to_state()))))
    assert right.to_state() == before
    assert left.percentile(percentile) == whole.percentile(percentile)


@given(st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False))
def test_a_bin_stands_for_its_values_within_one_percent(value: float) -> None:
    assert abs(bin_value(log_bin(value)) - value) <= abs(value) * 0.0100001


def test_bins_are_in_the_order_of_their_values() -> None:
    in_order = [-1.7e308, -2.0, -1.0, -1e-300, 0.0, 5e-324, 1e-300, 1.0, 2.0, 1.7e308]
    assert [log_bin(value) for value in in_order] == sorted(log_bin(value) for value in in_order)
    assert Quantiles().percentile(50) is None
