"""A model on the accelerator with its standby: it answers whatever the chip does, and goes back to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from edge_agent.accelerator import SERVED_TYPES
from edge_agent.placement import Overflow
from edge_agent.standby import LOADING, RETIRED, StandbyModel
from primespark.errors import ConflictError, IntegrityError, InvalidInputError, UnavailableError
from primespark.inference.catalog import ModelType
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_models import READERS, load_hef
from primespark.inference.images import decode_image
from primespark.inference.models import ServedModel
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.samples import sample_images
from primespark.inference.yolo import YoloDetector
from tests.colours import LABELS, MINIMUM, colours, hef
from tests.doubles import hailo
from tests.doubles.hailo import Machine
from tests.helpers import wait_until

COFFEE = decode_image(dict(sample_images())["coffee.png"], 1_000_000)
NOTHING = np.zeros((64, 64, 3), dtype=np.uint8)
FAST = (0.01, 0.05)


def test_a_hef_is_fetched_for_the_types_that_can_be_read() -> None:
    assert set(READERS) == SERVED_TYPES


def see_nothing(model: ServedModel) -> None:
    model.predict(NOTHING)


def processor() -> ServedModel:
    engine = OnnxEngine(colours(on_chip=False))
    answer = YoloDetector(engine, LABELS, MINIMUM)
    return ServedModel("colours", ModelType.OBJECT_DETECTION, 1, "0" * 64, LABELS, engine, answer)


@contextmanager
def standing_by(load: Callable[[], ServedModel]) -> Iterator[StandbyModel]:
    model = StandbyModel("colours", load, processor(), see_nothing, pauses_s=FAST)
    try:
        yield model
    finally:
        model.close()
        assert not any(thread.name == "accelerator colours" for thread in threading.enumerate())


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with hailo.fitted(tmp_path) as machine:
        (tmp_path / "colours.hef").write_bytes(hef(by_score=False))
        yield machine


@pytest.fixture
def load(machine: Machine, request: pytest.FixtureRequest) -> Iterator[Callable[[], ServedModel]]:
    device = HailoDevice(machine.root)
    timeout_s = getattr(request, "param", 30.0)

    def load() -> ServedModel:
        path = machine.root / "colours.hef"
        return load_hef(
            path,
            device,
            name="colours",
            model_type=ModelType.OBJECT_DETECTION,
            version=1,
            labels=LABELS,
            minimum_score=MINIMUM,
            timeout_s=timeout_s,
        )

    yield load
    device.close()


def is_back(model: StandbyModel) -> bool:
    return model.fault is None and model.current.device == "hailo8"


def test_the_standby_answers_until_the_accelerator_does(load: Callable[[], ServedModel]) -> None:
    may_load = threading.Event()

    def loads() -> ServedModel:
        may_load.wait()
        return load()

    with standing_by(loads) as model:
        assert (model.fault, model.current.device) == (LOADING, "cpu")
        first = model.answered(COFFEE)
        assert first.by.device == "cpu"
        may_load.set()
        wait_until(lambda: is_back(model))
        second = model.answered(COFFEE)
        assert second.by is model.current
        assert [one["label"] for one in second.predictions] == [one["label"] for one in first.predictions]
        assert len(second.predictions) > 3


@pytest.mark.parametrize("status", [36, 62, 87, 63, 74])
def test_each_request_is_answered_while_the_chip_is_dead(
    machine: Machine, load: Callable[[], ServedModel], status: int
) -> None:
    with standing_by(load) as model:
        wait_until(lambda: is_back(model))
        expected = model.answered(COFFEE).predictions
        for _ in range(2):
            machine.kill(status)
            answers = [model.answered(COFFEE) for _ in range(3)]
            assert [answer.by.device for answer in answers] == ["cpu"] * 3
            assert model.fault in ("accelerator_unavailable", "accelerator_timeout")
            assert all(len(answer.predictions) == len(expected) for answer in answers)
            machine.revive()
            wait_until(lambda: is_back(model))
            assert model.answered(COFFEE).predictions == expected


@pytest.mark.parametrize("load", [0.3], indirect=True)
def test_only_the_first_request_waits_for_a_chip_that_hangs(machine: Machine, load: Callable[[], ServedModel]) -> None:
    with standing_by(load) as model:
        wait_until(lambda: is_back(model))
        machine.freeze()
        assert model.answered(COFFEE).by.device == "cpu"
        assert model.fault == "accelerator_timeout"
        # The keeper waits for the frozen chip now; a request must not.
        assert model.answered(COFFEE).by.device == "cpu"
        machine.thaw()
        wait_until(lambda: is_back(model))


def test_a_chip_that_comes_later_is_used(machine: Machine, load: Callable[[], ServedModel]) -> None:
    machine.unplug()
    with standing_by(load) as model:
        wait_until(lambda: model.fault == "accelerator_unavailable")
        assert model.answered(COFFEE).by.device == "cpu"
        machine.plug_in()
        wait_until(lambda: is_back(model))


def test_a_file_that_never_loads_is_given_up(machine: Machine, load: Callable[[], ServedModel]) -> None:
    (machine.root / "colours.hef").write_bytes(b"no HEF")
    with standing_by(load) as model:
        wait_until(lambda: model.fault == "bad_model")
        model._keeper.join(10)
        assert not model._keeper.is_alive()
        assert model.answered(COFFEE).by.device == "cpu"


def test_a_bad_input_is_the_callers(load: Callable[[], ServedModel]) -> None:
    with standing_by(load) as model:
        wait_until(lambda: is_back(model))
        with pytest.raises(InvalidInputError):
            model.answered(COFFEE.astype(np.float32))
        assert is_back(model)


def test_a_failure_from_before_a_return_does_not_leave_again() -> None:
    begun, goes_on = threading.Event(), threading.Event()
    calls: list[int] = []

    def flaky(image: object) -> list[object]:
        """The second call hangs and fails late; the third fails at once."""
        calls.append(1)
        if len(calls) == 2:
            begun.set()
            goes_on.wait()
        if len(calls) in (2, 3) and image is COFFEE:
            raise UnavailableError("gone", code="accelerator_timeout")
        return []

    good = processor()
    broken = ServedModel("colours", good.model_type, 1, "1" * 64, LABELS, good.engine, flaky)  # type: ignore[arg-type]
    with standing_by(lambda: broken) as model:
        wait_until(lambda: model.fault is None)
        late = threading.Thread(target=model.answered, args=(COFFEE,))
        late.start()
        begun.wait()
        assert model.answered(COFFEE).by is not broken
        wait_until(lambda: model.fault is None)
        goes_on.set()
        late.join()
        assert model.fault is None
        assert model.answered(COFFEE).by is broken


def test_the_standby_helps_a_busy_accelerator(load: Callable[[], ServedModel]) -> None:
    depth = [0]
    overflow = Overflow(lambda: depth[0], 4, lambda: 0.1)
    model = StandbyModel("colours", load, processor(), see_nothing, overflow, FAST)
    try:
        wait_until(lambda: is_back(model))
        assert model.answered(COFFEE).by.device == "hailo8"
        depth[0] = 8
        assert model.answered(COFFEE).by.device == "cpu"
        depth[0] = 4
        assert model.answered(COFFEE).by.device == "hailo8"
        assert model.fault is None
    finally:
        model.close()


def test_a_retired_one_gives_the_chip_back_and_answers_on(load: Callable[[], ServedModel]) -> None:
    with standing_by(load) as model:
        wait_until(lambda: is_back(model))
        accelerated = model.current
        model.retire()
        assert model.answered(COFFEE).by.device == "cpu"
        assert model.fault == RETIRED
        with pytest.raises(ConflictError):
            accelerated.predict(COFFEE)


def test_an_accelerator_that_answers_otherwise_is_given_up(load: Callable[[], ServedModel]) -> None:
    def mismatched(model: ServedModel) -> None:
        raise IntegrityError("another answer", code="golden_mismatch")

    model = StandbyModel("colours", load, processor(), mismatched, pauses_s=FAST)
    try:
        wait_until(lambda: model.fault == "golden_mismatch")
        assert model.answered(COFFEE).by.device == "cpu"
    finally:
        model.close()
