"""The control channel of a chip: who it is, how warm, how it is throttled."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from .. import _machine
from .._runtime import INVALID_OPERATION, Status
from ._exceptions import ExceptionWrapper
from ._pyhailort import DeviceArchitectureTypes

TIMEOUT, UNSUPPORTED_OPCODE = 4, 48
# Called through it, C code keeps the interpreter, as the binding's control calls do.
_KEEPING = ctypes.PyDLL(None)


class Control:
    """The part our engine uses; made by a `Device`, and of no use when that is released."""

    def __init__(self, is_valid: Callable[[], bool]) -> None:
        self._is_valid = is_valid
        self.identify()

    def identify(self) -> Any:
        """Who the chip is."""
        with ExceptionWrapper():
            self._check()
        return SimpleNamespace(
            device_architecture=DeviceArchitectureTypes[_machine.MACHINE.architecture],
            firmware_version=_machine.MACHINE.version,
            board_name="Hailo-8",
            serial_number="<N/A>",
        )

    def get_chip_temperature(self) -> Any:
        """Degrees Celsius of both sensors, and a running 16-bit count of samples."""
        with ExceptionWrapper():
            self._call("get_chip_temperature")
        first, second = _machine.MACHINE.temperatures
        return SimpleNamespace(ts0_temperature=first, ts1_temperature=second, sample_count=7)

    def power_measurement(self, dvm: Any = None, measurement_type: Any = None) -> float:
        """Watts, where the board measures them."""
        with ExceptionWrapper():
            self._call("power_measurement")
            watts = _machine.MACHINE.power_w
            if watts is None:
                raise Status(UNSUPPORTED_OPCODE)
        return watts

    def get_throttling_state(self) -> bool:
        """Whether the protection is on, not whether it acts."""
        with ExceptionWrapper():
            self._call("get_throttling_state")
        health = _machine.MACHINE.health or {}
        return bool(health.get("temperature_throttling_active") or health.get("overcurrent_throttling_active"))

    def _get_health_information(self) -> Any:
        with ExceptionWrapper():
            self._call("_get_health_information")
            health = _machine.MACHINE.health
            if health is None:
                raise Status(UNSUPPORTED_OPCODE)
        return SimpleNamespace(**health)

    def _check(self) -> None:
        if not self._is_valid():
            raise Status(INVALID_OPERATION)

    def _call(self, name: str) -> None:
        machine = _machine.MACHINE
        self._check()
        machine.controls.append(name)
        _KEEPING.usleep(int(machine.control_s * 1e6))
        if machine.dead_status() is not None:
            raise Status(TIMEOUT)
        if machine.control_statuses and (status := machine.control_statuses.popleft()):
            raise Status(status)
