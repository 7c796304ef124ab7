"""The health of the chip: what it tells, what its board lacks, what fails, and how rarely it is asked."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.hailo_health import (
    INTERVAL_S,
    ChipReading,
    HailoHealth,
    Temperature,
    Throttling,
    Zone,
)
from tests.doubles import hailo
from tests.doubles.hailo import Hef, Machine, Stream

TEMPERATURE, POWER, THROTTLING = "get_chip_temperature", "power_measurement", "_get_health_information"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=hailo.VERSIONS)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    with hailo.fitted(tmp_path, request.param) as fitted:
        yield fitted


@pytest.fixture
def device(machine: Machine) -> Iterator[HailoDevice]:
    owner = HailoDevice(machine.root)
    owner.open()
    machine.controls.clear()
    yield owner
    owner.close()


def test_a_chip_tells_all_it_measures(machine: Machine, device: HailoDevice) -> None:
    machine.power_w = 2.53125
    found = HailoHealth(device).sample()
    assert found.temperature_celsius == Temperature(47.5, 48.25)
    assert found.power_watts == 2.531
    assert found.throttling == Throttling(0, Zone.GREEN, False)
    assert found.unavailable == {}


def test_protections_that_are_on_are_no_throttling_and_levels_are(machine: Machine, device: HailoDevice) -> None:
    assert machine.health is not None
    assert machine.health["temperature_throttling_active"]
    machine.health |= {
        "current_temperature_throttling_level": 1, "current_temperature_zone": 2, "current_overcurrent_zone": 1,
    }  # fmt: skip
    assert HailoHealth(device).sample().throttling == Throttling(2, Zone.RED, True)


def test_what_the_board_lacks_is_asked_once_until_the_chip_is_opened_anew(
    machine: Machine, device: HailoDevice
) -> None:
    clock = Clock()
    health = HailoHealth(device, clock)
    for _ in range(5):
        assert health.sample().power_watts is None
        clock.now += 1000
    assert health.latest.unavailable == {ChipReading.POWER: "not measured on this board"}
    assert [machine.controls.count(name) for name in (TEMPERATURE, POWER, THROTTLING)] == [5, 1, 5]

    machine.power_w = 2.0
    device.close()
    device.open()
    assert health.sample().power_watts == 2.0


def test_a_firmware_without_health_information(machine: Machine, device: HailoDevice) -> None:
    machine.health = None
    found = HailoHealth(device).sample()
    assert found.throttling is None
    assert found.unavailable[ChipReading.THROTTLING] == "not measured on this board"
    assert found.temperature_celsius is not None


@pytest.mark.parametrize("wait_s", [0.0, INTERVAL_S - 0.001])
def test_the_chip_is_not_asked_twice_within_the_interval(machine: Machine, device: HailoDevice, wait_s: float) -> None:
    clock = Clock()
    health = HailoHealth(device, clock)
    first = health.sample()
    machine.temperatures = (99.0, 99.0)
    clock.now += wait_s
    assert health.sample() == first == health.latest
    assert machine.controls.count(TEMPERATURE) == 1
    clock.now = 1000.0 + INTERVAL_S
    assert health.sample().temperature_celsius == Temperature(99.0, 99.0)


def test_a_call_that_fails_leaves_no_old_value_and_is_repeated_ever_more_rarely(
    machine: Machine, device: HailoDevice
) -> None:
    clock = Clock()
    health = HailoHealth(device, clock)
    assert health.sample().temperature_celsius is not None
    asked_at = []
    for _ in range(120):
        clock.now += INTERVAL_S
        machine.control_statuses.append(18)
        machine.controls.clear()
        found = health.sample()
        machine.control_statuses.clear()
        if TEMPERATURE in machine.controls:
            asked_at.append(clock.now)
            assert found.temperature_celsius is None
            assert "(HailoRT status 18)" in found.unavailable[ChipReading.TEMPERATURE]
    pauses = [later - earlier for earlier, later in pairwise(asked_at)]
    assert pauses == [20.0, 40.0, 80.0, 160.0, 320.0, 320.0]
    clock.now += 320.0
    assert health.sample().temperature_celsius == Temperature(47.5, 48.25)
    clock.now += INTERVAL_S
    machine.temperatures = (50.0, 50.0)
    assert health.sample().temperature_celsius == Temperature(50.0, 50.0)


def test_a_silent_chip_is_asked_for_one_thing_and_then_left_alone(machine: Machine, device: HailoDevice) -> None:
    clock = Clock()
    machine.power_w = 2.0
    health = HailoHealth(device, clock)
    health.sample()
    clock.now += INTERVAL_S
    machine.kill()
    machine.controls.clear()
    found = health.sample()
    assert machine.controls == [TEMPERATURE]
    assert (found.temperature_celsius, found.power_watts, found.throttling) == (None, None, None)
    assert set(found.unavailable.values()) == {"the chip did not answer (HailoRT status 4)"}
    clock.now += INTERVAL_S
    health.sample()
    assert machine.controls == [TEMPERATURE]
    machine.revive()
    clock.now += INTERVAL_S
    assert health.sample().unavailable == {}


@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 1.0, 9.9, 10.0, 25.0, 400.0]), st.sampled_from([0, 0, 4, 18, 48])), max_size=30
    )
)
def test_whatever_it_answers_it_is_asked_rarely(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[float, int]]
) -> None:
    """Calls of one name are an interval apart, unsupported ones are the last, and after a silence nothing is asked."""
    with hailo.fitted(tmp_path_factory.mktemp("machine")) as machine:
        machine.power_w = 2.0
        owner, clock = HailoDevice(machine.root), Clock()
        owner.open()
        health = HailoHealth(owner, clock)
        calls: dict[str, list[tuple[float, int]]] = {TEMPERATURE: [], POWER: [], THROTTLING: []}
        silent_until = 0.0
        for wait_s, status in steps:
            clock.now += wait_s
            machine.controls.clear()
            machine.control_statuses.clear()
            machine.control_statuses.extend([status] * 3)
            found = health.sample()
            for name in machine.controls:
                calls[name].append((clock.now, status))
            assert not (machine.controls and clock.now < silent_until)
            if machine.controls and status == 4:
                assert len(machine.controls) == 1
                silent_until = clock.now + 2 * INTERVAL_S
            assert (TEMPERATURE in machine.controls and status != 0) <= (found.temperature_celsius is None)
        for made in calls.values():
            assert all(later - earlier >= INTERVAL_S for (earlier, _), (later, _) in pairwise(made))
            assert 48 not in [status for _, status in made[:-1]]
        owner.close()


@given(told=st.sampled_from([float("nan"), float("inf"), None, "warm"]))
def test_a_temperature_that_is_no_number_is_none(tmp_path_factory: pytest.TempPathFactory, told: object) -> None:
    with hailo.fitted(tmp_path_factory.mktemp("machine")) as machine:
        owner = HailoDevice(machine.root)
        owner.open()
        machine.temperatures = (40.0, told)  # type: ignore[assignment]
        found = HailoHealth(owner).sample()
        assert found.temperature_celsius is None
        assert found.unavailable[ChipReading.TEMPERATURE]
        owner.close()


@pytest.mark.parametrize("change", [{"current_temperature_throttling_level": 7}, {"current_temperature_zone": 3}])
def test_a_level_that_does_not_exist_is_not_passed_on(
    machine: Machine, device: HailoDevice, change: dict[str, int]
) -> None:
    assert machine.health is not None
    machine.health |= change
    assert HailoHealth(device).sample().throttling is None


def test_a_closed_chip_is_not_opened(machine: Machine) -> None:
    owner = HailoDevice(machine.root)
    health = HailoHealth(owner)
    assert set(health.sample().unavailable) == set(ChipReading)
    assert owner.chip() is None
    owner.open()
    assert health.sample().temperature_celsius is not None
    owner.close()
    assert health.sample().temperature_celsius is None
    assert set(health.latest.unavailable.values()) == {"no model of this process runs on a chip"}


def test_a_fork_asks_nothing(device: HailoDevice) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(HailoHealth(device).sample().temperature_celsius).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 100) == b"None"
    os.close(reader)
    os.close(writer)


def test_a_sample_under_way_is_not_waited_for(machine: Machine, device: HailoDevice) -> None:
    health = HailoHealth(device)
    entered, go_on = threading.Event(), threading.Event()

    class Waiting:
        def get_chip_temperature(self) -> None:
            entered.set()
            go_on.wait(10)

    device.chip().control = Waiting()
    sampling = threading.Thread(target=health.sample)
    sampling.start()
    assert entered.wait(10)
    assert health.sample() == health.latest
    assert sampling.is_alive()
    go_on.set()
    sampling.join(10)


def test_inference_goes_on_beside_the_samples_and_after_a_failure_on_the_new_device(machine: Machine) -> None:
    stream = (Stream("in", (4,), "in", "FLOAT32"),)
    path = machine.root / "m.hef"
    path.write_bytes(Hef("m", stream, (Stream("out", (4,), "out", "FLOAT32"),), function="add_one").to_bytes())
    owner = HailoDevice(machine.root)
    engine = HailoInferenceEngine(path, owner, retry_pause_s=0.0)
    health = HailoHealth(owner)
    machine.control_s = 0.05
    frame = {"in": np.zeros((1, 4), np.float32)}
    sampling = threading.Thread(target=health.sample)
    sampling.start()
    started = time.perf_counter()
    for _ in range(50):
        engine.run(frame)
    assert time.perf_counter() - started < 5
    sampling.join(10)
    assert health.latest.temperature_celsius is not None

    first = owner.chip()
    machine.completion_statuses.append(36)
    with pytest.raises(Exception, match="driver failed"):
        engine.run(frame)
    engine.run(frame)
    assert owner.chip() is not first
    with pytest.raises(Exception, match="Invalid operation"):
        first.control.get_chip_temperature()
    machine.temperatures = (51.0, 51.0)
    assert health.sample().temperature_celsius == Temperature(51.0, 51.0)
    engine.close()
    owner.close()
