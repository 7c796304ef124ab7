"""Stands for the C++ extension: the raw exception and the enumerations."""

from __future__ import annotations

import enum


class FormatType(enum.IntEnum):
    """Type of a host buffer's elements."""

    AUTO = 0
    UINT8 = 1
    UINT16 = 2
    FLOAT32 = 3

    def __str__(self) -> str:
        return f"FormatType.{self.name}"


class HailoSchedulingAlgorithm(enum.IntEnum):
    """How models share a device."""

    NONE = 0
    ROUND_ROBIN = 1


class HailoPowerMode(enum.IntEnum):
    """Power of a model."""

    PERFORMANCE = 0
    ULTRA_PERFORMANCE = 1


class DeviceArchitectureTypes(enum.IntEnum):
    """What chip it is."""

    HAILO8_A0 = 0
    HAILO8 = 1
    HAILO8L = 2
    HAILO15H = 3
    HAILO15L = 4
    HAILO15M = 5
    HAILO10H = 6
