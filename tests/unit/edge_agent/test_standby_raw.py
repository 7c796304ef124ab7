"""Raw tensors asked of a model with a standby: the other variant answers where it takes and gives the same."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edge_agent.placement import Overflow
from edge_agent.standby import StandbyModel
from primespark.errors import IntegrityError, InvalidInputError, UnavailableError
from primespark.inference.catalog import ModelType
from primespark.inference.models import RawInputs, ServedModel
from tests.doubles.fake_engine import FakeEngine, Function
from tests.helpers import wait_until

RAW = {"x": np.zeros((2, 3), np.float32)}
BYTES = {"x": np.zeros((2, 3), np.uint8)}
GONE = UnavailableError("gone", remedy="look at it", code="accelerator_timeout")


class Pair:
    """A model of two variants, whose networks give 1 on the accelerator and 0 on the processor.

    Args:
        kind: Type of what the accelerator takes; the processor takes float32.
        versions: Of the accelerator's variant and of the processor's.
    """

    def __init__(
        self,
        kind: type[np.generic] = np.float32,
        versions: tuple[int, int] = (1, 1),
        overflow: Overflow | None = None,
        function: Function | None = None,
    ) -> None:
        self.may_return = threading.Event()
        self.may_return.set()
        self.fault: Exception | None = None
        self.chip = FakeEngine({"x": (kind, (None, 3))}, ("y",), function or gives(1), device="hailo8")
        processor = FakeEngine({"x": (np.float32, (None, 3))}, ("y",), gives(0))
        self.accelerated = served(self.chip, versions[0])
        self.standby = served(processor, versions[1])
        self.model = StandbyModel("m", lambda: self.accelerated, self.standby, self._prove, overflow, (0.01, 0.05))
        wait_until(lambda: self.model.fault is None)

    def away(self) -> ServedModel | None:
        return self.model.away

    def leave(self) -> None:
        """Let the accelerator fail, and not come back."""
        self.may_return.clear()
        self.chip.fail_with(GONE)

    def ask(self, variant: ServedModel | None = None, is_version_named: bool = False) -> int:
        asked = variant or self.model.current
        arrays = RAW if asked.engine.input_types[0] == np.float32 else BYTES
        found = self.model.computed(RawInputs(arrays, asked, is_version_named))
        assert found.outputs[0].tolist() == [found.by is self.accelerated]
        return int(found.outputs[0][0])

    def _prove(self, _: ServedModel) -> None:
        assert self.may_return.wait(20)
        if self.fault is not None:
            raise self.fault


def gives(number: float) -> Function:
    return lambda _: [np.full(1, number, np.float32)]


def served(engine: FakeEngine, version: int) -> ServedModel:
    return ServedModel("m", ModelType.TABULAR, version, engine.device, (), engine, lambda _: [])


@pytest.fixture
def make() -> Iterator[Callable[..., Pair]]:
    made: list[Pair] = []

    def make(*arguments: object, **named: object) -> Pair:
        made.append(Pair(*arguments, **named))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for pair in made:
        pair.may_return.set()
        pair.model.close()


def test_a_failure_is_answered_by_a_standby_of_the_same_tensors(make: Callable[..., Pair]) -> None:
    pair = make()
    assert pair.ask() == 1
    assert pair.away() is None
    pair.leave()
    assert [pair.ask(pair.accelerated) for _ in range(3)] == [0, 0, 0]
    assert pair.model.fault == GONE.code
    assert pair.away() is pair.accelerated
    pair.may_return.set()
    wait_until(lambda: pair.model.fault is None)
    # Also what was asked of the standby meanwhile.
    assert pair.ask(pair.standby) == 1


def test_a_standby_of_other_tensors_answers_only_what_is_its_own(make: Callable[..., Pair]) -> None:
    pair = make(np.uint8)
    pair.leave()
    with pytest.raises(UnavailableError) as caught:
        pair.ask()
    assert caught.value is GONE
    # The chip is left by that: the next is told without asking it.
    runs = pair.chip.runs
    with pytest.raises(UnavailableError) as caught:
        pair.ask(pair.model.away)
    assert (caught.value.code, bool(caught.value.remedy), pair.chip.runs) == ("accelerator_unavailable", True, runs)
    assert pair.ask(pair.model.current) == 0
    pair.may_return.set()
    wait_until(lambda: pair.model.fault is None)
    assert pair.ask() == 1
    # Asked while the accelerator was away, answered after.
    assert pair.ask(pair.standby) == 0


def test_a_named_version_is_not_answered_by_another(make: Callable[..., Pair]) -> None:
    pair = make(versions=(2, 1))
    pair.leave()
    assert pair.ask(pair.accelerated) == 0
    with pytest.raises(UnavailableError):
        pair.ask(pair.accelerated, is_version_named=True)
    assert pair.ask(pair.standby, is_version_named=True) == 0


def test_a_bad_input_is_the_callers(make: Callable[..., Pair]) -> None:
    for pair in (make(), make(np.uint8)):
        with pytest.raises(InvalidInputError):
            pair.model.computed(RawInputs({"x": np.zeros(1)}, pair.accelerated))
        assert pair.model.fault is None


@pytest.mark.parametrize(("kind", "answered"), [(np.float32, 0), (np.uint8, 1)])
def test_a_standby_of_the_same_tensors_helps_a_busy_accelerator(
    make: Callable[..., Pair], kind: type[np.generic], answered: int
) -> None:
    pair = make(kind, overflow=Overflow(lambda: 8, 4, lambda: 0.1))
    assert pair.ask() == answered


def test_nothing_is_away_that_never_comes_back(make: Callable[..., Pair]) -> None:
    retired, given_up = make(np.uint8), make(np.uint8)
    retired.model.retire()
    given_up.fault = IntegrityError("another answer", code="golden_mismatch")
    given_up.leave()
    with pytest.raises(UnavailableError):
        given_up.ask()
    given_up.may_return.set()
    wait_until(lambda: given_up.model.fault == "golden_mismatch")
    wait_until(lambda: given_up.away() is None)
    for pair in (retired, given_up):
        assert pair.away() is None
        assert pair.ask() == 0
        with pytest.raises(UnavailableError):
            pair.ask(pair.accelerated)


def test_nothing_is_away_before_it_was_there() -> None:
    may_load = threading.Event()
    standby = served(FakeEngine({"x": (np.float32, (None, 3))}, ("y",), gives(0)), 1)

    def load() -> ServedModel:
        may_load.wait()
        return standby

    model = StandbyModel("m", load, standby, lambda _: None)
    try:
        assert model.away is None
        assert model.computed(RawInputs(RAW, model.current)).by is standby
    finally:
        may_load.set()
        model.close()
