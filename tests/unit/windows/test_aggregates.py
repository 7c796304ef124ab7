"""Aggregates: exact against rational arithmetic, mergeable in any order, the same after a trip through JSON."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from primespark.windows.aggregates import Aggregate, AggregationFunction
from tests.helpers import rounds
from tests.unit.windows.oracle import expected_value

FUNCTIONS = list(AggregationFunction)
values = st.floats(-1e9, 1e9).map(lambda value: value + 0.0)
# Event time and value; the offset is the place in the list.
records = st.lists(st.tuples(st.integers(-5, 5), values), max_size=15)


def aggregate(items: list[tuple[int, float]], first_offset: int = 0) -> Aggregate:
    result = Aggregate(with_quantiles=True)
    for offset, (moment, value) in enumerate(items, first_offset):
        result.add(value, (moment, offset, 0))
    return result


def assert_same(found: Aggregate, expected: list[tuple[int, float]], ddof: int) -> None:
    by_time = [value for _, _, value in sorted((moment, at, value) for at, (moment, value) in enumerate(expected))]
    scale = max([abs(value) for value in by_time], default=0.0)
    for function in FUNCTIONS:
        percentile = 95.0 if function is AggregationFunction.PERCENTILE else None
        result = found.value(function, ddof=ddof, percentile=95.0, span_s=10)
        if not by_time:
            assert result == (0.0 if function in (AggregationFunction.COUNT, AggregationFunction.RATE) else None)
            continue
        exact = expected_value(function, by_time, ddof=ddof, percentile=percentile, span_s=10)
        power = 2 if function is AggregationFunction.VARIANCE else 1
        assert result == (None if exact is None else pytest.approx(exact, rel=1e-9, abs=1e-13 * scale**power + 1e-300))


@given(items=records, ddof=st.integers(0, 1))
def test_each_function_equals_exact_arithmetic(items: list[tuple[int, float]], ddof: int) -> None:
    assert_same(aggregate(items), items, ddof)


@given(items=records, cuts=st.lists(st.integers(0, 30), max_size=3), ddof=st.integers(0, 1), seed=st.integers(0, 99))
def test_parts_merged_in_any_order_equal_the_whole(
    items: list[tuple[int, float]], cuts: list[int], ddof: int, seed: int
) -> None:
    bounds = sorted({0, len(items), *(min(cut, len(items)) for cut in cuts)})
    parts = [aggregate(items[low:high], low) for low, high in pairwise(bounds)]
    random.Random(seed).shuffle(parts)
    merged = Aggregate(with_quantiles=True)
    for part in parts:
        before = part.to_state()
        merged.merge(part)
        assert part.to_state() == before
    assert_same(merged, items, ddof)


@given(items=records)
def test_an_empty_part_is_neutral_from_both_sides(items: list[tuple[int, float]]) -> None:
    found = aggregate(items)
    before = found.to_state()
    found.merge(Aggregate(with_quantiles=True))
    assert found.to_state() == before
    other = Aggregate(with_quantiles=True)
    other.merge(found)
    assert_same(other, items, 1)


@pytest.mark.prove
@settings(max_examples=rounds(40, 800))
@given(left=records, middle=records, right=records)
def test_merging_is_associative_and_commutative(
    left: list[tuple[int, float]], middle: list[tuple[int, float]], right: list[tuple[int, float]]
) -> None:
    items = [*left, *middle, *right]
    offsets = (0, len(left), len(left) + len(middle))
    for order in permutations(zip((left, middle, right), offsets, strict=True)):
        (first, second, third) = [aggregate(part, offset) for part, offset in order]
        first.merge(second)
        first.merge(third)
        assert_same(first, items, 1)
        (first, second, third) = [aggregate(part, offset) for part, offset in order]
        second.merge(third)
        first.merge(second)
        assert_same(first, items, 1)


@given(items=records, later=records)
def test_a_state_through_json_goes_on_bit_for_bit(
    items: list[tuple[int, float]], later: list[tuple[int, float]]
) -> None:
    steady = aggregate(items)
    restored = Aggregate.from_state(json.loads(json.dumps(steady.to_state())))
    for offset, (moment, value) in enumerate(later, len(items)):
        steady.add(value, (moment, offset, 0))
        restored.add(value, (moment, offset, 0))
    assert restored.to_state() == steady.to_state()


@pytest.mark.parametrize("parts", [1, 7, 100])
def test_variance_near_a_billion_keeps_its_digits(parts: int) -> None:
    """A sum of squares says 49.8 here where 0.29 is right."""
    samples = 1e9 + np.random.default_rng(7).uniform(0, 1, 10_000)
    merged = Aggregate(with_quantiles=True)
    for offset, part in enumerate(np.array_split(samples, parts)):
        merged.merge(aggregate([(0, float(value)) for value in part], offset * 10_000))
    exact = expected_value("variance", samples.tolist())
    assert merged.value(AggregationFunction.VARIANCE) == pytest.approx(exact, rel=1e-6)
    assert merged.value(AggregationFunction.STDDEV) == pytest.approx(float(np.std(samples, ddof=1)), rel=1e-6)


def test_a_sum_does_not_lose_small_values_beside_large_ones() -> None:
    found = aggregate([(0, 1e16), (0, 1.0), (0, 1.0), (0, -1e16)])
    assert found.value(AggregationFunction.SUM) == 2.0
    naive = aggregate([(0, 1e16), (0, 1.0)])
    naive.merge(aggregate([(0, 1.0), (0, -1e16)], 2))
    assert naive.value(AggregationFunction.SUM) == 2.0


def test_what_leaves_the_range_of_a_double_has_no_value() -> None:
    found = aggregate([(0, 1.7e308), (0, 1.7e308)])
    assert found.value(AggregationFunction.SUM) is None
    assert found.value(AggregationFunction.MAX) == 1.7e308
    found.add(-1.7e308, (0, 2, 0))
    assert found.value(AggregationFunction.VARIANCE) is None
    assert found.value(AggregationFunction.STDDEV) is None
    assert found.value(AggregationFunction.COUNT) == 3.0


def test_spread_of_one_value_is_none_as_in_sql_and_zero_for_a_population() -> None:
    one = aggregate([(0, 4.0)])
    for function in (AggregationFunction.VARIANCE, AggregationFunction.STDDEV):
        assert one.value(function) is None
        assert one.value(function, ddof=0) == 0.0


def test_first_and_last_go_by_event_time_and_ties_by_offset() -> None:
    found = Aggregate()
    for position, value in {(5, 0, 0): 1.0, (5, 0, 1): 2.0, (3, 1, 0): 3.0, (3, 2, 0): 4.0, (5, 3, 0): 5.0}.items():
        found.add(value, position)
    assert found.value(AggregationFunction.FIRST) == 3.0
    assert found.value(AggregationFunction.LAST) == 5.0
    assert math.isfinite(found.total)
