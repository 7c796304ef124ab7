"""The Hailo engine against every failure of the chip: right, or an error that says so, and well again after it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from primespark.errors import (
    ConfigurationError,
    ConflictError,
    IntegrityError,
    MissingDependencyError,
    PrimeSparkError,
    TransientError,
    UnavailableError,
)
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.hailo_session import HailoSession
from tests.doubles import hailo
from tests.doubles.hailo import Hef, Machine, Stream
from tests.helpers import wait_until

SHAPE = (4, 3)
ADD_ONE = Hef(
    "add_one",
    (Stream("add_one/input_layer1", SHAPE, "in"),),
    (Stream("add_one/output", SHAPE, "out", "FLOAT32"),),
    function="add_one",
)
INPUT = "add_one/input_layer1"
STATUSES = {36: "accelerator_unavailable", 63: "accelerator_unavailable", 87: "accelerator_timeout"}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=hailo.VERSIONS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    with hailo.fitted(tmp_path, request.param) as fitted:
        (tmp_path / "model.hef").write_bytes(ADD_ONE.to_bytes())
        yield fitted


@pytest.fixture
def newest(tmp_path: Path) -> Iterator[Machine]:
    with hailo.fitted(tmp_path) as fitted:
        (tmp_path / "model.hef").write_bytes(ADD_ONE.to_bytes())
        yield fitted


@pytest.fixture
def device(tmp_path: Path) -> Iterator[HailoDevice]:
    owner = HailoDevice(tmp_path)
    yield owner
    owner.close()


def load(device: HailoDevice, machine: Machine, **options: Any) -> HailoInferenceEngine:
    return HailoInferenceEngine(machine.root / "model.hef", device, **{"retry_pause_s": 0.0, **options})


def frame(value: int) -> dict[str, NDArray[np.uint8]]:
    return {INPUT: np.full((1, *SHAPE), value, np.uint8)}


def is_right(answers: list[NDArray[Any]], value: int) -> bool:
    return answers[0].shape == (1, *SHAPE) and bool((answers[0] == value + 1).all())


def in_flight(session: Any) -> int:
    return len(session._configured._inner._in_flight)


@pytest.mark.parametrize(
    ("kind", "scale", "zero_point", "span"),
    [
        ("UINT8", 1 / 255, 0.0, (0.0, 1.0)),
        ("UINT8", 1 / 255, 51.0, (-0.2, 0.8)),
        ("UINT8", 0.1, 100.0, (-10.0, 15.5)),
        ("UINT16", 1 / 65535, 0.0, (0.0, 1.0)),
        ("UINT16", 2.0, 1000.0, (-2000.0, 129_070.0)),
        ("FLOAT32", 0.0, 0.0, None),
    ],
)
def test_the_span_is_what_the_bits_of_the_chip_can_tell(
    machine: Machine, device: HailoDevice, kind: str, scale: float, zero_point: float, span: tuple[float, float] | None
) -> None:
    output = Stream("add_one/output", SHAPE, "out", kind, scale, zero_point)
    (machine.root / "model.hef").write_bytes(replace(ADD_ONE, outputs=(output,)).to_bytes())
    found = load(device, machine).outputs[0]
    assert found.dtype == np.float32
    assert found.span == (None if span is None else pytest.approx(span))


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (36, UnavailableError, "accelerator_unavailable"),
        (64, UnavailableError, "accelerator_unavailable"),
        (74, UnavailableError, "accelerator_unavailable"),
        (76, ConfigurationError, "accelerator_version"),
        (87, UnavailableError, "accelerator_timeout"),
    ],
)
def test_a_chip_that_does_not_open(
    machine: Machine, device: HailoDevice, status: int, kind: type[PrimeSparkError], code: str
) -> None:
    machine.open_status = status
    with pytest.raises(kind, match=f"HailoRT status {status}") as caught:
        load(device, machine)
    assert caught.value.code == code
    assert caught.value.remedy
    machine.open_status = None
    assert is_right(load(device, machine).run(frame(3)), 3)


def test_a_driver_of_another_release(machine: Machine, device: HailoDevice) -> None:
    machine.plug_in(driver="4.17.1")
    with pytest.raises(ConfigurationError, match="driver and library are of different releases"):
        load(device, machine)


def test_a_chip_that_another_process_has(machine: Machine, device: HailoDevice) -> None:
    with (machine.root / "dev/hailo0").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UnavailableError, match="no free accelerator") as caught:
            load(device, machine)
        assert "fuser" in caught.value.remedy
    load(device, machine)


def test_a_missing_chip(machine: Machine, device: HailoDevice) -> None:
    assert device.is_available()
    machine.unplug()
    assert not device.is_available()
    with pytest.raises(UnavailableError, match="no Hailo chip"):
        load(device, machine)


@pytest.mark.parametrize("status", STATUSES)
def test_a_frame_that_is_not_taken(machine: Machine, device: HailoDevice, status: int) -> None:
    engine = load(device, machine)
    machine.submit_statuses.append(status)
    with pytest.raises(UnavailableError) as caught:
        engine.run(frame(1))
    assert caught.value.code == STATUSES[status]
    assert is_right(engine.run(frame(2)), 2)


@pytest.mark.parametrize("status", STATUSES)
def test_a_frame_that_fails_in_the_chip(machine: Machine, device: HailoDevice, status: int) -> None:
    engine = load(device, machine)
    assert is_right(engine.run(frame(7)), 7)
    machine.completion_statuses.append(status)
    with pytest.raises(UnavailableError) as caught:
        engine.run(frame(1))
    assert caught.value.code == STATUSES[status]
    assert is_right(engine.run(frame(2)), 2)


def test_a_timeout_is_an_error_and_the_next_run_is_right(machine: Machine, device: HailoDevice) -> None:
    engine = load(device, machine, timeout_s=0.05)
    machine.freeze()
    with pytest.raises(UnavailableError, match="did not answer within") as caught:
        engine.run(frame(1))
    assert caught.value.code == "accelerator_timeout"
    machine.thaw()
    assert is_right(engine.run(frame(2)), 2)


def test_a_late_frame_reaches_nobody_and_its_buffers_are_not_used_again(newest: Machine, device: HailoDevice) -> None:
    import hailo_platform

    opened, _ = device.open()
    session = HailoSession(hailo_platform, opened, newest.root / "model.hef", float_inputs=False)
    frames = list(session._free)
    newest.freeze()
    with ThreadPoolExecutor(1) as pool:
        patient = pool.submit(session.run, frame(10), 10.0)
        wait_until(lambda: in_flight(session) == 1)
        with pytest.raises(UnavailableError):
            session.run(frame(20), 0.02)
        late = frames[1]
        assert not late.done.is_set()
        assert session.failed
        with pytest.raises(UnavailableError):
            session.run(frame(30), 1.0)
        newest.thaw()
        assert is_right(patient.result(), 10)
        assert late.done.wait(10)
    assert (late.outputs["add_one/output"] == 21).all()
    assert late not in session._free


def test_answers_told_in_the_wrong_order_reach_who_asked(machine: Machine, device: HailoDevice) -> None:
    engine = load(device, machine)
    machine.reorder = 3
    with ThreadPoolExecutor(3) as pool:
        for start in range(0, 90, 3):
            answers = pool.map(lambda value: is_right(engine.run(frame(value)), value), range(start, start + 3))
            assert all(answers)


def test_as_many_frames_are_in_flight_as_the_queue_takes(newest: Machine, device: HailoDevice) -> None:
    engine = load(device, newest)
    assert engine.concurrency == ADD_ONE.queue_size
    newest.freeze()
    with ThreadPoolExecutor(10) as pool:
        running = [pool.submit(engine.run, frame(value)) for value in range(10)]
        wait_until(lambda: in_flight(engine._session) == ADD_ONE.queue_size)
        newest.thaw()
        assert all(is_right(future.result(), value) for value, future in enumerate(running))


def test_a_place_that_is_free_late_is_waited_for(newest: Machine, device: HailoDevice) -> None:
    engine = load(device, newest)
    newest.place_s = 0.003
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda value: is_right(engine.run(frame(value)), value), range(100)))


def test_the_first_run_after_a_revival_is_right(machine: Machine, device: HailoDevice) -> None:
    engine = load(device, machine)
    machine.kill()
    with pytest.raises(UnavailableError):
        engine.run(frame(1))
    machine.revive()
    assert is_right(engine.run(frame(2)), 2)


def test_a_device_that_died_is_opened_anew_for_every_model(machine: Machine, device: HailoDevice) -> None:
    first, second = load(device, machine), load(device, machine)
    machine.kill()
    with pytest.raises(UnavailableError):
        first.run(frame(1))
    machine.revive()
    with pytest.raises(UnavailableError):
        load(device, machine)
    third = load(device, machine)
    with pytest.raises(UnavailableError):
        second.run(frame(1))
    assert [is_right(engine.run(frame(2)), 2) for engine in (first, second, third)] == [True] * 3


def test_a_failure_to_load_is_not_tried_again_at_once(newest: Machine, device: HailoDevice) -> None:
    clock = Clock()
    engine = load(device, newest, retry_pause_s=2.0, clock=clock)
    newest.kill(36)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            engine.run(frame(1))
    newest.revive()
    assert not engine.is_available()
    with pytest.raises(UnavailableError, match="HailoRT status 36") as caught:
        engine.run(frame(1))
    assert caught.value.retry_after_s == 2.0
    clock.now += 2.1
    assert engine.is_available()
    engine.probe()
    assert is_right(engine.run(frame(1)), 1)


def test_a_probe_says_when_the_chip_is_back(machine: Machine, device: HailoDevice) -> None:
    engine = load(device, machine)
    machine.kill(87)
    with pytest.raises(UnavailableError):
        engine.run(frame(1))
    with pytest.raises(UnavailableError):
        engine.probe()
    machine.revive()
    engine.probe()
    assert is_right(engine.run(frame(1)), 1)


def test_models_share_the_chip(machine: Machine, device: HailoDevice) -> None:
    first, second = load(device, machine), load(device, machine)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda value: is_right((first, second)[value % 2].run(frame(value)), value), range(100)))
    first.close()
    assert is_right(second.run(frame(5)), 5)


@pytest.mark.parametrize("status", [36, 87])
def test_a_chip_that_dies_again_and_again_under_load(newest: Machine, device: HailoDevice, status: int) -> None:
    engine = load(device, newest)
    stop = threading.Event()
    right: list[int] = []
    told: list[str] = []

    def work(seed: int) -> None:
        value = seed
        while not stop.is_set():
            value = (value * 7 + 3) % 250
            try:
                answers = engine.run(frame(value))
            except TransientError as error:
                told.append(error.code)
            else:
                assert is_right(answers, value)
                right.append(value)

    with ThreadPoolExecutor(4) as pool:
        workers = [pool.submit(work, seed) for seed in range(4)]
        for _ in range(10):
            before, failed = len(right), len(told)
            wait_until(lambda before=before: len(right) > before + 50)  # type: ignore[misc]
            newest.kill(status)
            wait_until(lambda failed=failed: len(told) > failed + 20)  # type: ignore[misc]
            newest.revive()
        before = len(right)
        wait_until(lambda: len(right) > before + 50)
        stop.set()
        for worker in workers:
            worker.result(timeout=20)
    assert set(told) <= {"accelerator_unavailable", "accelerator_timeout"}
    assert is_right(engine.run(frame(9)), 9)


def test_memory_does_not_grow(newest: Machine, device: HailoDevice) -> None:
    engine = load(device, newest)
    given = frame(1)
    for _ in range(100):
        engine.run(given)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(1000):
        engine.run(given)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 64 * 1024


def test_a_fork_of_the_owner_is_refused(newest: Machine, device: HailoDevice) -> None:
    engine = load(device, newest)
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        told = "nothing"
        try:
            engine.close()
            engine.run(frame(1))
        except ConflictError as error:
            told = error.code
        os.write(writes, told.encode())
        os._exit(0)
    os.close(writes)
    os.waitpid(child, 0)
    assert os.read(reads, 100) == b"accelerator_forked"
    assert is_right(engine.run(frame(1)), 1)


@pytest.mark.parametrize(("version", "reason"), [("4.17.0", "no InferModel"), ("5.2.0", "no longer drives Hailo-8")])
def test_other_releases_are_refused_with_the_reason(tmp_path: Path, version: str, reason: str) -> None:
    with hailo.fitted(tmp_path, version) as fitted, pytest.raises(ConfigurationError, match=reason) as caught:
        HailoDevice(fitted.root).open()
    assert caught.value.code == "accelerator_version"


def test_without_the_vendors_package(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match="not installed") as caught:
        HailoDevice(tmp_path).open()
    assert "--system-site-packages" in caught.value.remedy


def test_a_package_that_does_not_load(newest: Machine, device: HailoDevice) -> None:
    newest.import_error = "libhailort.so.4.20.0: cannot open shared object file: No such file or directory"
    with pytest.raises(MissingDependencyError, match=r"libhailort\.so\.4\.20\.0: cannot open"):
        device.open()


@pytest.mark.parametrize(
    ("hef", "chip", "code"),
    [
        (ADD_ONE.to_bytes()[:-1], "HAILO8", "bad_model"),
        (ADD_ONE.to_bytes()[:-1] + b"!", "HAILO8", "bad_model"),
        (b"\x08\x01 an ONNX file", "HAILO8", "bad_model"),
        (b"", "HAILO8", "bad_model"),
        (Hef("h", ADD_ONE.inputs, ADD_ONE.outputs, "HAILO10H", function="add_one").to_bytes(), "HAILO8",
         "wrong_architecture"),
        (ADD_ONE.to_bytes(), "HAILO8L", "wrong_architecture"),
    ],
    ids=["cut off", "damaged", "no HEF", "empty", "Hailo-10H", "Hailo-8 on Hailo-8L"],
)  # fmt: skip
def test_a_hef_that_does_not_fit(tmp_path: Path, device: HailoDevice, hef: bytes, chip: str, code: str) -> None:
    with hailo.fitted(tmp_path, architecture=chip) as fitted:
        (tmp_path / "model.hef").write_bytes(hef)
        with pytest.raises(IntegrityError) as caught:
            load(device, fitted)
    assert caught.value.code == code
    assert caught.value.remedy
    if code == "wrong_architecture":
        assert f"the chip is a {chip.lower()}" in caught.value.message


def test_a_refused_operation_is_the_files_fault_at_the_first_load_only(newest: Machine, device: HailoDevice) -> None:
    newest.configure_status = 6
    with pytest.raises(IntegrityError, match="one network"):
        load(device, newest)
    newest.configure_status = None
    engine = load(device, newest)
    newest.completion_statuses.append(63)
    with pytest.raises(UnavailableError):
        engine.run(frame(1))
    newest.configure_status = 6
    with pytest.raises(UnavailableError):
        engine.run(frame(1))


def test_float_inputs_are_quantised_by_the_host(newest: Machine, device: HailoDevice) -> None:
    stream = Stream(INPUT, SHAPE, "in", "UINT8", scale=0.5, zero_point=10)
    hef = Hef("add_one", (stream,), (Stream("out", SHAPE, "out", "UINT8", 0.25, 20),), function="add_one")
    (newest.root / "model.hef").write_bytes(hef.to_bytes())
    engine = load(device, newest, float_inputs=True)
    given = np.linspace(-5, 30, 12, dtype=np.float32).reshape(1, *SHAPE)
    (answer,) = engine.run({INPUT: given})
    # Half a step of the input, then half a step of the output.
    np.testing.assert_allclose(answer, given + 1, atol=0.25 + 0.125 + 1e-6)
    assert not np.allclose(answer, given + 1, atol=1e-3)
    assert answer.dtype == np.float32


def test_an_exception_in_a_callback_ends_the_process_on_the_double(newest: Machine) -> None:
    code = f"""
import numpy as np, hailo_platform as h
p = h.VDevice.create_params(); p.scheduling_algorithm = h.HailoSchedulingAlgorithm.ROUND_ROBIN
device = h.VDevice(p)
model = device.create_infer_model({str(newest.root / "model.hef")!r})
c = model.configure()
b = c.create_bindings(dict([("add_one/input_layer1", np.zeros((4, 3), np.uint8))]),
                      dict([("add_one/output", np.zeros((4, 3), np.float32))]))
c.run_async([b], lambda completion_info: 1 / 0).wait(5000)
print("alive")
"""
    environment = {"HAILO_DOUBLE_ROOT": str(newest.root), "PYTHONPATH": str(Path(hailo.__file__).parent)}
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=30)
    assert process.returncode == -6, process.stderr
    assert "ZeroDivisionError" in process.stderr
