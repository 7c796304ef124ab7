"""The hardware's readings: from the kernel's files, and from the accelerator of a double; in reports and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY, generate_latest

from edge_agent.hardware import Hardware
from edge_agent.host_health import HostHealth, ThrottleCause, read_host
from edge_agent.measurements import measure
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_health import ChipReading, HailoHealth
from tests.doubles import hailo
from tests.doubles.hailo import Machine

PI_4 = "sys/devices/platform/soc/soc:firmware/get_throttled"
PI_5 = "sys/devices/platform/soc@107c000000/soc@107c000000:firmware/get_throttled"


def write(root: Path, path: str, text: str) -> None:
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with hailo.fitted(tmp_path) as fitted:
        yield fitted


def shown(name: str) -> dict[str, float]:
    """Samples of a metric as Prometheus gets them, by the value of their label."""
    (family,) = [family for family in REGISTRY.collect() if family.name == name]
    assert name.encode() in generate_latest(REGISTRY)
    return {"".join(sample.labels.values()): float(sample.value) for sample in family.samples}


def test_the_hottest_sensor_counts_and_broken_ones_do_not(tmp_path: Path) -> None:
    for zone, text in enumerate(["48312\n", "", "-274000\n", "words\n", "2147483647\n", "1" * 500]):
        write(tmp_path, f"sys/class/thermal/thermal_zone{zone}/temp", text)
    assert read_host(tmp_path).temperature_celsius == 48.312
    (tmp_path / "sys/class/thermal/thermal_zone9/temp").mkdir(parents=True)
    write(tmp_path, "sys/class/hwmon/hwmon2/temp1_input", "61000\n")
    assert read_host(tmp_path).temperature_celsius == 61.0


def test_a_computer_that_tells_nothing(tmp_path: Path) -> None:
    assert read_host(tmp_path) == HostHealth(None, {})


def test_a_process_that_can_open_no_more_files_has_no_reading(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "40000\n")
    hardware = Hardware(HailoHealth(HailoDevice(tmp_path)), tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        hardware.sample()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert hardware.host == HostHealth(None, {})
    hardware.sample()
    assert hardware.host.temperature_celsius == 40.0


@pytest.mark.parametrize("path", [PI_4, PI_5])
@pytest.mark.parametrize(
    ("text", "holding"),
    [
        ("0\n", set()),
        ("50005\n", {ThrottleCause.UNDER_VOLTAGE, ThrottleCause.THROTTLED}),
        ("0xa\n", {ThrottleCause.FREQUENCY_CAPPED, ThrottleCause.SOFT_TEMPERATURE_LIMIT}),
        ("f0000\n", set()),
    ],
)
def test_a_pi_tells_why_it_is_slow_now(tmp_path: Path, path: str, text: str, holding: set[ThrottleCause]) -> None:
    """Bits as in Raspberry Pi's table of `get_throttled`; what was is not what is."""
    write(tmp_path, path, text)
    assert read_host(tmp_path).throttling == {cause: cause in holding for cause in ThrottleCause}


@pytest.mark.parametrize("alarm", [False, True])
def test_without_that_file_the_voltage_sensor_tells_its_one_cause(tmp_path: Path, alarm: bool) -> None:
    write(tmp_path, "sys/class/hwmon/hwmon0/name", "another\n")
    write(tmp_path, "sys/class/hwmon/hwmon0/in0_lcrit_alarm", "1\n")
    write(tmp_path, "sys/class/hwmon/hwmon1/name", "rpi_volt\n")
    assert read_host(tmp_path).throttling == {}
    write(tmp_path, "sys/class/hwmon/hwmon1/in0_lcrit_alarm", f"{int(alarm)}\n")
    assert read_host(tmp_path).throttling == {ThrottleCause.UNDER_VOLTAGE: alarm}


@given(text=st.binary(max_size=80))
def test_any_content_is_a_reading_or_none(tmp_path_factory: pytest.TempPathFactory, text: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "any"
    for path in (PI_4, "sys/class/thermal/thermal_zone0/temp"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(text)
    found = read_host(root)
    assert found.temperature_celsius is None or -60 < found.temperature_celsius < 200
    assert set(found.throttling) in (set(), set(ThrottleCause))


def test_what_is_not_told_is_absent_everywhere_and_said_to_be_unavailable(tmp_path: Path) -> None:
    hardware = Hardware(HailoHealth(HailoDevice(tmp_path)), tmp_path)
    hardware.sample()
    reason = "no model of this process runs on a chip"
    assert hardware.report() == {
        "host": {"temperature_celsius": None, "throttling": None},
        "accelerator": {
            "temperature_celsius": None, "power_watts": None, "throttling": None,
            "unavailable": {"temperature": reason, "power": reason, "throttling": reason},
        },
    }  # fmt: skip
    assert hardware.telemetry() == {}
    for name in ("host_temperature_celsius", "host_throttled", "accelerator_temperature_celsius",
                 "accelerator_power_watts", "accelerator_throttling_level", "accelerator_overcurrent"):  # fmt: skip
        assert shown(f"primespark_{name}") == {}
    assert shown("primespark_hardware_reading_available") == {
        "host_temperature": 0, "host_throttling": 0, "accelerator_temperature": 0, "accelerator_power": 0,
        "accelerator_throttling": 0,
    }  # fmt: skip


def test_what_is_told_is_reported_measured_and_sent(machine: Machine) -> None:
    write(machine.root, "sys/class/thermal/thermal_zone0/temp", "55000\n")
    write(machine.root, PI_5, "1\n")
    assert machine.health is not None
    machine.health["current_temperature_throttling_level"] = 0
    device = HailoDevice(machine.root)
    hardware = Hardware(HailoHealth(device), machine.root)
    device.open()
    hardware.sample()
    assert hardware.report()["host"]["throttling"]["under_voltage"] is True
    assert hardware.report()["accelerator"] == {
        "temperature_celsius": {"ts0": 47.5, "ts1": 48.25}, "power_watts": None,
        "throttling": {"level": 1, "zone": "green", "overcurrent": False},
        "unavailable": {"power": "not measured on this board"},
    }  # fmt: skip
    assert hardware.telemetry() == {"accelerator_temperature_celsius": 48.25, "accelerator_throttling_level": 1.0}
    assert not set(hardware.telemetry()) & set(measure())
    assert shown("primespark_host_temperature_celsius") == {"": 55}
    assert shown("primespark_host_throttled")["under_voltage"] == 1
    assert shown("primespark_accelerator_temperature_celsius") == {"ts0": 47.5, "ts1": 48.25}
    assert shown("primespark_accelerator_power_watts") == {}
    assert shown("primespark_accelerator_throttling_level") == {"": 1}
    assert shown("primespark_accelerator_overcurrent") == {"": 0}
    available = shown("primespark_hardware_reading_available")
    assert [name for name, value in available.items() if not value] == ["accelerator_power"]

    device.close()
    hardware.sample()
    assert shown("primespark_accelerator_temperature_celsius") == {}
    assert set(hardware.accelerator.unavailable) == set(ChipReading)


async def test_the_loop_samples_at_once_and_ends_when_cancelled(tmp_path: Path) -> None:
    write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "40000\n")
    hardware = Hardware(HailoHealth(HailoDevice(tmp_path)), tmp_path)
    running = asyncio.create_task(hardware.run())
    async with asyncio.timeout(10):
        while hardware.host.temperature_celsius is None:  # noqa: ASYNC110 (set on a thread)
            await asyncio.sleep(0.005)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert running.cancelled()
