"""Temperature, power and throttling of the computer and of its accelerator: sampled, reported, exported."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn
from weakref import ReferenceType, ref

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from edge_agent.host_health import HostHealth, read_host
from primespark.inference.hailo_health import INTERVAL_S, ChipHealth, ChipReading, HailoHealth


class Hardware:
    """What the hardware told last.

    Args:
        accelerator: Health of the process's accelerator.
        root: Where `sys` is found.
    """

    def __init__(self, accelerator: HailoHealth, root: Path = Path("/")) -> None:
        self._accelerator = accelerator
        self._root = root
        self._host = HostHealth()
        _collector.watched = ref(self)

    @property
    def host(self) -> HostHealth:
        """The computer's last sample."""
        return self._host

    @property
    def accelerator(self) -> ChipHealth:
        """The accelerator's last sample."""
        return self._accelerator.latest

    def sample(self) -> None:
        """Look at both; a millisecond, or a second where the accelerator does not answer."""
        self._host = read_host(self._root)
        self._accelerator.sample()

    async def run(self) -> NoReturn:
        """Sample every `INTERVAL_S` until cancelled, beside the event loop."""
        while True:
            await asyncio.to_thread(self.sample)
            await asyncio.sleep(INTERVAL_S)

    def report(self) -> dict[str, Any]:
        """For people, as JSON: null where nothing is told, and `unavailable` with the reasons of the accelerator."""
        return {
            "host": {
                "temperature_celsius": self.host.temperature_celsius, "throttling": dict(self.host.throttling) or None,
            },
            "accelerator": asdict(self.accelerator),
        }  # fmt: skip

    def telemetry(self) -> dict[str, float]:
        """What the accelerator told, as numbers by name; what it does not tell is not in it."""
        told, values = self.accelerator, {}
        if told.temperature_celsius is not None:
            values["accelerator_temperature_celsius"] = max(told.temperature_celsius.ts0, told.temperature_celsius.ts1)
        if told.power_watts is not None:
            values["accelerator_power_watts"] = told.power_watts
        if told.throttling is not None:
            values["accelerator_throttling_level"] = float(told.throttling.level)
        return values


class _HardwareCollector(Collector):
    """The last samples of the newest `Hardware`; a process has one."""

    watched: ReferenceType[Hardware] | None = None

    def collect(self) -> Iterator[Metric]:
        """The families, with a sample for each reading that is there."""
        hardware = self.watched() if self.watched is not None else None
        if hardware is not None:
            yield from _host_families(hardware.host)
            yield from _accelerator_families(hardware.accelerator)
            yield _availability(hardware)


def _host_families(host: HostHealth) -> Iterator[Metric]:
    temperature = GaugeMetricFamily("primespark_host_temperature_celsius", "The computer's hottest sensor.")
    if host.temperature_celsius is not None:
        temperature.add_metric([], host.temperature_celsius)
    throttled = GaugeMetricFamily("primespark_host_throttled", "Whether a cause slows it now.", labels=["cause"])
    for cause, holds in host.throttling.items():
        throttled.add_metric([cause], holds)
    yield from (temperature, throttled)


def _accelerator_families(chip: ChipHealth) -> Iterator[Metric]:
    temperature = GaugeMetricFamily(
        "primespark_accelerator_temperature_celsius", "The accelerator's sensors.", labels=["sensor"]
    )
    if chip.temperature_celsius is not None:
        for sensor, celsius in asdict(chip.temperature_celsius).items():
            temperature.add_metric([sensor], celsius)
    power = GaugeMetricFamily("primespark_accelerator_power_watts", "What the accelerator draws.")
    if chip.power_watts is not None:
        power.add_metric([], chip.power_watts)
    level = GaugeMetricFamily("primespark_accelerator_throttling_level", "0 at full clock, to 4.")
    overcurrent = GaugeMetricFamily("primespark_accelerator_overcurrent", "Whether its current is beyond the limit.")
    if chip.throttling is not None:
        level.add_metric([], chip.throttling.level)
        overcurrent.add_metric([], chip.throttling.overcurrent)
    yield from (temperature, power, level, overcurrent)


def _availability(hardware: Hardware) -> Metric:
    available = GaugeMetricFamily(
        "primespark_hardware_reading_available", "Whether a reading is there now.", labels=["reading"]
    )
    available.add_metric(["host_temperature"], hardware.host.temperature_celsius is not None)
    available.add_metric(["host_throttling"], bool(hardware.host.throttling))
    for reading in ChipReading:
        available.add_metric([f"accelerator_{reading}"], reading not in hardware.accelerator.unavailable)
    return available


_collector = _HardwareCollector()
REGISTRY.register(_collector)
