"""How the accelerator is: temperature, power, throttling, where it tells them.

HailoRT's control calls keep the interpreter until they end, with a chip that is silent a second. So the chip is asked
rarely, a reading that failed after ever longer pauses, and one its board lacks once until the chip is opened anew.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_errors import status_of

INTERVAL_S = 10.0
_MAX_PAUSE_S = 320.0
_MAX_REASON = 200
_TIMEOUTS = frozenset({4, 87})
_UNSUPPORTED = frozenset({48, 79})
# Firmware counts the steps of throttling from 0 and tells -1 at full clock.
_FULL_CLOCK = -1
_MAX_LEVEL = 3


class ChipReading(StrEnum):
    """What is asked of the chip."""

    TEMPERATURE = "temperature"
    POWER = "power"
    THROTTLING = "throttling"


class Zone(StrEnum):
    """How near the chip's temperature is to its limits, as its firmware sees it."""

    GREEN = "green"
    ORANGE = "orange"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Temperature:
    """Degrees Celsius of the chip's two sensors."""

    ts0: float
    ts1: float


@dataclass(frozen=True, slots=True)
class Throttling:
    """What firmware does to protect the chip.

    Attributes:
        level: 0 at full clock, 1 to 4 the slower.
        zone: Of the temperature.
        overcurrent: Whether the current is beyond its limit.
    """

    level: int
    zone: Zone
    overcurrent: bool


@dataclass(frozen=True, slots=True)
class ChipHealth:
    """The newest readings; what is None has its reason in `unavailable`."""

    temperature_celsius: Temperature | None = None
    power_watts: float | None = None
    throttling: Throttling | None = None
    unavailable: Mapping[ChipReading, str] = field(default_factory=dict)


_CLOSED = ChipHealth(unavailable=dict.fromkeys(ChipReading, "no model of this process runs on a chip"))


@dataclass(slots=True)
class _Asked:
    """One reading's last answer, and when it is asked for next."""

    value: Any = None
    reason: str = ""
    due: float = 0.0
    pause_s: float = INTERVAL_S


class HailoHealth:
    """The health of the chip that this process has open; safe to share between threads.

    Args:
        device: The process's accelerator. It is never opened here.
        clock: Seconds, never going back.
    """

    def __init__(self, device: HailoDevice, clock: Callable[[], float] = time.monotonic) -> None:
        self._device = device
        self._clock = clock
        self._sampling = threading.Lock()
        self._chip: Any = None
        self._asked = {reading: _Asked() for reading in ChipReading}
        self._latest = _CLOSED

    @property
    def latest(self) -> ChipHealth:
        """What the last sample found; asks nothing."""
        return self._latest

    def sample(self) -> ChipHealth:
        """The newest readings; asks the chip for those that are due, each at most once in `INTERVAL_S`.

        A call beside one that is under way, and any call in a fork, asks nothing. Takes milliseconds, with a silent
        chip a second.
        """
        if not self._sampling.acquire(blocking=False):
            return self._latest
        try:
            chip = self._device.chip()
            if chip is not self._chip:
                self._chip = chip
                self._asked = {reading: _Asked() for reading in ChipReading}
            self._latest = self._sampled(chip) if chip is not None else _CLOSED
            return self._latest
        finally:
            self._sampling.release()

    def _sampled(self, chip: Any) -> ChipHealth:
        for reading, asked in self._asked.items():
            if self._clock() >= asked.due and self._is_silent(reading, asked, chip.control):
                self._leave_alone(asked)
                break
        values = {reading: asked.value for reading, asked in self._asked.items()}
        return ChipHealth(
            values[ChipReading.TEMPERATURE],
            values[ChipReading.POWER],
            values[ChipReading.THROTTLING],
            {reading: asked.reason or "not asked yet" for reading, asked in self._asked.items() if asked.value is None},
        )

    def _is_silent(self, reading: ChipReading, asked: _Asked, control: Any) -> bool:
        """Ask for one reading; whether the chip did not answer, so that asking on would cost another second."""
        asked.value, asked.reason = None, ""
        try:
            asked.value = _READERS[reading](control)
        # Raw exceptions of the binding have no base of their own.
        except Exception as error:  # noqa: BLE001
            status = status_of(error)
            supported = status not in _UNSUPPORTED and not isinstance(error, AttributeError)
            asked.reason = _reason(error, status) if supported else "not measured on this board"
            asked.pause_s = min(2 * asked.pause_s, _MAX_PAUSE_S) if supported else math.inf
            asked.due = self._clock() + asked.pause_s
            return status in _TIMEOUTS
        asked.pause_s = INTERVAL_S
        asked.due = self._clock() + asked.pause_s
        return False

    def _leave_alone(self, silent: _Asked) -> None:
        """Ask for nothing before the reading that got no answer is due again."""
        for asked in self._asked.values():
            if asked.due < silent.due:
                asked.value, asked.reason, asked.due, asked.pause_s = None, silent.reason, silent.due, silent.pause_s


def _reason(error: Exception, status: int | None) -> str:
    if status in _TIMEOUTS:
        return f"the chip did not answer (HailoRT status {status})"
    text = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
    return f"{text} (HailoRT status {status})" if status is not None else text


def _read_temperature(control: Any) -> Temperature:
    told = control.get_chip_temperature()
    return Temperature(_finite(told.ts0_temperature), _finite(told.ts1_temperature))


def _read_power(control: Any) -> float:
    # By default what the board can measure of the whole chip, in watts.
    return _finite(control.power_measurement())


def _read_throttling(control: Any) -> Throttling:
    # The public `get_throttling_state` says that the protection is on, not that it acts.
    told = control._get_health_information()
    level, zone = int(told.current_temperature_throttling_level), int(told.current_temperature_zone)
    if not (_FULL_CLOCK <= level <= _MAX_LEVEL and 0 <= zone < len(Zone)):
        raise ValueError(f"the chip told a throttling level of {level} in zone {zone}")
    return Throttling(level - _FULL_CLOCK, list(Zone)[zone], bool(told.current_overcurrent_zone))


def _finite(number: Any) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"the chip told {value}")
    return round(value, 3)


_READERS: Mapping[ChipReading, Callable[[Any], Any]] = {
    ChipReading.TEMPERATURE: _read_temperature,
    ChipReading.POWER: _read_power,
    ChipReading.THROTTLING: _read_throttling,
}
