"""Buffers of batches: never two batches in one, whatever their holders do."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from numpy.typing import NDArray

from primespark.errors import InvalidInputError, OverloadedError
from primespark.inference.batches import BatchRing


def fill(ring: BatchRing, value: int, count: int = 4) -> NDArray[np.uint8]:
    batch = ring.take(count, (2, 3), np.uint8)
    batch.target[:] = value
    return batch.array


def test_a_batch_is_read_only_and_has_its_form() -> None:
    array = BatchRing().take(5, (3, 4, 6), np.float32).array
    assert array.shape == (5, 3, 4, 6)
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_a_third_batch_is_refused_until_one_is_dropped() -> None:
    ring = BatchRing()
    first, second = fill(ring, 1), fill(ring, 2)
    with pytest.raises(OverloadedError) as caught:
        fill(ring, 3)
    assert caught.value.code == "batches_held"
    assert (first == 1).all()
    assert (second == 2).all()
    del first
    assert (fill(ring, 3) == 3).all()
    assert (second == 2).all()


@pytest.mark.parametrize(
    "view_of",
    [
        lambda array: array[1],
        lambda array: array[1:3].transpose(),
        lambda array: array.reshape(-1)[3:],
        lambda array: array.view(np.int8),
        lambda array: array[0][:1][0, 1:],
        lambda array: memoryview(array),
        lambda array: np.asarray(memoryview(array)),
        lambda array: list(array),
    ],
)
def test_whoever_keeps_a_part_keeps_the_batch(view_of: object) -> None:
    ring = BatchRing()
    kept = view_of(fill(ring, 1))  # type: ignore[operator]
    gc.collect()
    assert ring.free == 1
    del kept
    gc.collect()
    assert ring.free == 2


def test_a_writer_that_fails_gives_the_buffer_back() -> None:
    ring = BatchRing()

    def write() -> None:
        ring.take(4, (2, 3), np.uint8).target[9] = 1

    for _ in range(5):
        with pytest.raises(IndexError):
            write()
    gc.collect()
    assert ring.free == 2


def test_a_buffer_is_the_same_memory_again() -> None:
    ring = BatchRing()
    places = set()
    for value in range(6):
        batch = ring.take(4, (100, 100), np.float32)
        places.add(batch.target.ctypes.data)
        batch.target[:] = value
    assert len(places) == 2


def test_marks_last_as_long_as_the_form() -> None:
    ring = BatchRing()
    held = fill(ring, 0)
    ring.take(4, (2, 3), np.uint8).marks[0] = "border"
    assert ring.take(2, (2, 3), np.uint8).marks == {0: "border"}
    assert ring.take(4, (3, 2), np.uint8).marks == {}
    assert ring.take(4, (2, 3), np.uint8).marks == {}
    ring.take(4, (2, 3), np.uint8).marks[0] = "border"
    assert ring.take(32, (2, 3), np.uint8).marks == {}, "the buffer grew, and with it its content is gone"
    assert (held == 0).all()


@pytest.mark.parametrize(
    ("count", "shape"), [(0, (2, 3)), (33, (2, 3)), (-1, (2, 3)), (4, (0, 3)), (32, (3, 2048, 2048))]
)
def test_a_senseless_or_huge_batch_is_refused(count: int, shape: tuple[int, ...]) -> None:
    ring = BatchRing()
    with pytest.raises(InvalidInputError) as caught:
        ring.take(count, shape, np.float32)
    assert caught.value.code == "bad_batch"
    assert ring.free == 2


def test_threads_never_see_each_other_s_batches() -> None:
    ring, wrong = BatchRing(), []

    def work(value: int) -> None:
        for _ in range(300):
            try:
                array = fill(ring, value, 32)
            except OverloadedError:
                continue
            if not (array == value).all():
                wrong.append(value)
            del array

    threads = [threading.Thread(target=work, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    gc.collect()
    assert ring.free == 2


class Holders(RuleBasedStateMachine):
    """Any order of taking, keeping parts and dropping."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = BatchRing()
        self.kept: list[tuple[int, list[NDArray[np.uint8]]]] = []
        self.value = 0

    @precondition(lambda self: len(self.kept) < 2)
    @rule(count=st.integers(1, 32))
    def take(self, count: int) -> None:
        self.value = (self.value + 1) % 256
        self.kept.append((self.value, [fill(self.ring, self.value, count)]))

    @precondition(lambda self: len(self.kept) == 2)
    @rule()
    def take_a_third(self) -> None:
        with pytest.raises(OverloadedError):
            fill(self.ring, 0)

    @precondition(lambda self: self.kept)
    @rule(which=st.integers(0, 1))
    def keep_a_part_only(self, which: int) -> None:
        _, views = self.kept[which % len(self.kept)]
        views[:] = [views[-1][len(views[-1]) // 2 :]]

    @precondition(lambda self: self.kept)
    @rule(which=st.integers(0, 1))
    def drop(self, which: int) -> None:
        self.kept.pop(which % len(self.kept))

    @invariant()
    def each_holds_its_own(self) -> None:
        for value, views in self.kept:
            assert all((view == value).all() for view in views)


TestHolders = Holders.TestCase
TestHolders.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)
