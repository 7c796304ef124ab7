"""How warm the computer is, and whether it is throttled, from the kernel's files alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

# On a Raspberry Pi 5 the bus carries its address in its name.
_THROTTLED = ("sys/devices/platform/soc*/*firmware/get_throttled", "sys/devices/platform/*firmware/get_throttled")
_PI_VOLTAGE_SENSOR = "rpi_volt"
_LOWEST_CELSIUS, _HIGHEST_CELSIUS = -60.0, 200.0
_MAX_BYTES = 64


class ThrottleCause(StrEnum):
    """Why a Raspberry Pi runs slower than it could, by the bits of its firmware from the lowest on."""

    UNDER_VOLTAGE = "under_voltage"
    FREQUENCY_CAPPED = "frequency_capped"
    THROTTLED = "throttled"
    SOFT_TEMPERATURE_LIMIT = "soft_temperature_limit"


@dataclass(frozen=True, slots=True)
class HostHealth:
    """What the kernel tells.

    Attributes:
        temperature_celsius: Of the hottest sensor; None where there is none.
        throttling: Whether each cause holds now, for those that are told; empty on computers that tell none.
    """

    temperature_celsius: float | None = None
    throttling: Mapping[ThrottleCause, bool] = field(default_factory=dict)


def read_host(root: Path = Path("/")) -> HostHealth:
    """The computer whose files lie under `root`, now."""
    return HostHealth(max(_temperatures(root), default=None), _throttling(root))


def _temperatures(root: Path) -> Iterator[float]:
    zones = _files(root, "sys/class/thermal/thermal_zone*/temp")
    sensors = _files(root, "sys/class/hwmon/hwmon*/temp*_input")
    for text in _texts([*zones, *sensors]):
        try:
            celsius = int(text) / 1000
        except ValueError:
            continue
        if math.isfinite(celsius) and _LOWEST_CELSIUS < celsius < _HIGHEST_CELSIUS:
            yield celsius


def _throttling(root: Path) -> Mapping[ThrottleCause, bool]:
    for text in _texts(file for pattern in _THROTTLED for file in _files(root, pattern)):
        try:
            bits = int(text, 16)
        except ValueError:
            continue
        # The bits above say what happened since someone last looked, and the kernel itself looks every two seconds.
        return {cause: bool(bits >> bit & 1) for bit, cause in enumerate(ThrottleCause)}
    for sensor in _files(root, "sys/class/hwmon/hwmon*/name"):
        if next(_texts([sensor]), "") == _PI_VOLTAGE_SENSOR:
            for text in _texts([sensor.with_name("in0_lcrit_alarm")]):
                return {ThrottleCause.UNDER_VOLTAGE: text == "1"}
    return {}


def _files(root: Path, pattern: str) -> list[Path]:
    try:
        return list(root.glob(pattern))
    except OSError:  # no more files can be opened now
        return []


def _texts(files: Iterable[Path]) -> Iterator[str]:
    for file in files:
        try:
            # A sensor may be asleep or gone: then reading it fails.
            with file.open("rb") as opened:
                yield opened.read(_MAX_BYTES).decode("ascii", "replace").strip()
        except OSError:
            continue
