"""Runs that share a batch get what they would get alone, errors too."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from primespark.errors import InvalidInputError, PrimeSparkError, UnavailableError
from primespark.inference.batching_engine import BatchingEngine
from tests.doubles.fake_engine import FakeEngine
from tests.helpers import wait_until

Arrays = Mapping[str, NDArray[Any]]


class Recorded:
    """Doubles its input; holds each run until it is let go, and remembers how many rows it had."""

    def __init__(self, fails_above: int = 1000, sums: bool = False) -> None:
        self.rows: list[int] = []
        self.goes_on = threading.Event()
        self._fails_above = fails_above
        self._sums = sums
        self.engine = FakeEngine({"x": (np.float32, (None, 2))}, ("twice",), self)

    def __call__(self, inputs: Arrays) -> list[NDArray[Any]]:
        self.rows.append(len(inputs["x"]))
        assert self.goes_on.wait(10)
        if len(inputs["x"]) > self._fails_above:
            raise UnavailableError("no memory", code="inference_failed")
        return [inputs["x"].sum(axis=0)] if self._sums else [inputs["x"] * 2]


def rows(first: int, count: int = 1) -> dict[str, NDArray[np.float32]]:
    return {"x": np.arange(first, first + 2 * count, dtype=np.float32).reshape(count, 2)}


def gathered(recorded: Recorded, size: int, *given: Arrays) -> list[Any]:
    """What each caller gets, all of whom came while a run was under way."""
    batching = BatchingEngine(recorded.engine, size, wait_s=0)
    with ThreadPoolExecutor(len(given) + 1) as pool:
        first = pool.submit(batching.run, rows(900))
        wait_until(lambda: recorded.rows)
        others = []
        for number, one in enumerate(given, start=1):
            others.append(pool.submit(batching.run, one))
            wait_until(lambda number=number: sum(len(batch.parts) for batch in batching._open.values()) >= number)  # type: ignore[misc]
        recorded.goes_on.set()
        np.testing.assert_array_equal(first.result()[0], rows(900)["x"] * 2)
        return [other.exception() or other.result() for other in others]


def test_who_waits_for_the_engine_shares_the_next_run() -> None:
    recorded = Recorded()
    answers = gathered(recorded, 8, rows(10), rows(20, 2), rows(30))
    assert recorded.rows == [1, 4]
    for answer, inputs in zip(answers, (rows(10), rows(20, 2), rows(30)), strict=True):
        np.testing.assert_array_equal(answer[0], inputs["x"] * 2)


def test_a_batch_that_fails_is_run_one_by_one() -> None:
    recorded = Recorded(fails_above=1)
    answers = gathered(recorded, 8, rows(10), rows(20))
    assert recorded.rows == [1, 2, 1, 1]
    np.testing.assert_array_equal(answers[1][0], rows(20)["x"] * 2)


def test_inputs_of_another_shape_are_no_part_of_it() -> None:
    recorded = Recorded()
    bad = {"x": np.zeros((1, 3), np.float32)}
    good, refused = gathered(recorded, 8, rows(10), bad)
    assert isinstance(refused, InvalidInputError)
    np.testing.assert_array_equal(good[0], rows(10)["x"] * 2)


def test_a_model_that_does_not_answer_row_by_row_is_left_alone() -> None:
    recorded = Recorded(sums=True)
    recorded.goes_on.set()
    batching = BatchingEngine(recorded.engine, 4, wait_s=5)
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda first: batching.run(rows(first))[0], range(4)))
    for first, answer in enumerate(answers):
        np.testing.assert_array_equal(answer, rows(first)["x"][0])
    assert recorded.rows == [4, 1, 1, 1, 1]
    batching.run(rows(0))
    assert batching.concurrency == 1


def test_a_full_batch_does_not_wait() -> None:
    recorded = Recorded()
    recorded.goes_on.set()
    batching = BatchingEngine(recorded.engine, 3, wait_s=60)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda first: batching.run(rows(first)), range(3)))
    assert recorded.rows == [3]


@given(
    counts=st.lists(st.integers(1, 5), min_size=1, max_size=12),
    size=st.integers(1, 6),
    wait_s=st.sampled_from([0.0, 0.002]),
    fails_above=st.sampled_from([1, 3, 1000]),
)
def test_each_gets_what_it_would_get_alone(counts: list[int], size: int, wait_s: float, fails_above: int) -> None:
    recorded = Recorded(fails_above)
    recorded.goes_on.set()
    batching = BatchingEngine(recorded.engine, size, wait_s)

    def run(number: int) -> list[NDArray[Any]] | str:
        try:
            return batching.run(rows(100 * number, counts[number]))
        except PrimeSparkError as error:
            return error.code

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(run, range(len(counts))))
    for number, (count, answer) in enumerate(zip(counts, answers, strict=True)):
        if count > fails_above:
            assert answer == "inference_failed"
        else:
            assert isinstance(answer, list)
            np.testing.assert_array_equal(answer[0], rows(100 * number, count)["x"] * 2)
    assert all(found <= max(size, *counts) for found in recorded.rows)


@pytest.mark.parametrize("shape", [(1, 2), (4, 2)])
def test_a_model_of_a_fixed_size_gets_each_run_as_it_is(shape: tuple[int, int]) -> None:
    engine = FakeEngine({"x": (np.float32, shape)}, ("twice",), lambda inputs: [inputs["x"] * 2])
    batching = BatchingEngine(engine, 8, wait_s=60)
    np.testing.assert_array_equal(batching.run(rows(0, shape[0]))[0], rows(0, shape[0])["x"] * 2)
    assert batching.concurrency == 1
