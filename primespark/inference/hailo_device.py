"""The accelerator as this process has it: one `VDevice` that all models share."""

from __future__ import annotations

import importlib
import os
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

from primespark.errors import ConfigurationError, ConflictError, MissingDependencyError, UnavailableError
from primespark.inference.hailo_errors import let_go, translated

_PACKAGE = "hailo_platform"
_DEVICES = "sys/class/hailo_chardev"
_OLDEST = (4, 18)
_FIRST_WITHOUT_HAILO8 = (5, 0)
_GROUP = "SHARED"
# Of the vendor's enumeration, by name.
_ARCHITECTURES = {"HAILO8_A0": "hailo8", "HAILO8": "hailo8", "HAILO8L": "hailo8l"}
_MAX_REASON = 200


class HailoDevice:
    """Owner of the chip in this process; opened at first use, safe to share between threads.

    A child made by fork must not use it: HailoRT's threads do not live there.

    Args:
        root: Where `sys` and `dev` are found.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._opened: Any = None
        self._chip: Any = None
        self._architecture = ""
        self._owner = os.getpid()

    @property
    def is_owner(self) -> bool:
        """Whether this process made the object; a fork of it did not."""
        return self._owner == os.getpid()

    def is_available(self) -> bool:
        """Whether a chip is there, by the files of its driver: microseconds, and nothing is opened."""
        return self.is_owner and _has_chip(self._root)

    def open(self) -> tuple[Any, str]:
        """The open VDevice and the chip's architecture, `hailo8` or `hailo8l`.

        Raises:
            MissingDependencyError: The vendor's package is not installed, or does not load.
            ConfigurationError: Code `accelerator_version`: HailoRT, its driver or the chip is not a supported one.
            UnavailableError: Code `accelerator_unavailable` or `accelerator_timeout`: no chip, or it does not answer.
            ConflictError: Code `accelerator_forked`: this process was forked from the owner.
        """
        self.check_owner()
        with self._lock:
            if self._opened is None:
                self._opened, self._chip, self._architecture = self._open()
            return self._opened, self._architecture

    def chip(self) -> Any:
        """The vendor's `Device` of the open chip, None while it is closed or in a fork; never opens, never waits.

        Hold it for as long as its control channel is used: what nobody holds is released.
        """
        return self._chip if self.is_owner else None

    def discard(self, device: Any) -> None:
        """Close a VDevice that failed, so that the next `open` makes another; one that is not open is left alone."""
        with self._lock:
            if device is not self._opened:
                return
            chip, self._opened, self._chip = self._chip, None, None
        _release(chip)
        _release(device)

    def close(self) -> None:
        """Give the chip back; closing twice is allowed. Models on it end with `accelerator_unavailable`."""
        if self.is_owner:
            self.discard(self._opened)

    def check_owner(self) -> None:
        """Nothing in the process that made this object.

        Raises:
            ConflictError: Code `accelerator_forked`.
        """
        if not self.is_owner:
            raise ConflictError(
                f"the accelerator belongs to process {self._owner}, this is its fork {os.getpid()}",
                remedy="start worker processes with `spawn`, and let one process run the models",
                code="accelerator_forked",
            )

    def _open(self) -> tuple[Any, Any, str]:
        vendor = _vendor_with_chip(self._root)
        device = chip = None
        try:
            parameters = vendor.VDevice.create_params()
            parameters.scheduling_algorithm = vendor.HailoSchedulingAlgorithm.ROUND_ROBIN
            parameters.group_id = _GROUP
            device = vendor.VDevice(parameters)
            chip = device.get_physical_devices()[0]
            name = chip.control.identify().device_architecture.name
        # Raw exceptions of the binding have no base of their own.
        except Exception as error:  # noqa: BLE001
            _release(chip)
            _release(device)
            raise translated(error, "opening the accelerator") from None
        if name not in _ARCHITECTURES:
            _release(chip)
            _release(device)
            raise _another_chip(name)
        return device, chip, _ARCHITECTURES[name]


def identify(root: Path = Path("/")) -> str:
    """The chip's architecture, asked over a control channel that is closed at once; beside a process that infers.

    Args:
        root: Where `sys` is found.

    Raises:
        MissingDependencyError, ConfigurationError, UnavailableError: As `HailoDevice.open`.
    """
    vendor, chip = _vendor_with_chip(root), None
    try:
        chip = vendor.Device()
        name = chip.control.identify().device_architecture.name
    # Raw exceptions of the binding have no base of their own.
    except Exception as error:  # noqa: BLE001
        raise translated(error, "asking the accelerator who it is") from None
    finally:
        _release(chip)
    if name not in _ARCHITECTURES:
        raise _another_chip(name)
    return _ARCHITECTURES[name]


def load_vendor() -> ModuleType:
    """The vendor's package, of a supported release.

    Raises:
        MissingDependencyError: Not installed, or its parts do not fit each other.
        ConfigurationError: Code `accelerator_version`: a release that is not supported, with the reason.
    """
    try:
        vendor = importlib.import_module(_PACKAGE)
    except ModuleNotFoundError as error:
        if error.name != _PACKAGE:
            raise _does_not_load(error) from None
        raise MissingDependencyError(
            "the Python package hailo_platform is not installed",
            remedy="install the vendor's python3-hailort and make the environment with --system-site-packages",
        ) from None
    # A library of another release ends in ImportError, RuntimeError or one of the package's own.
    except Exception as error:  # noqa: BLE001
        raise _does_not_load(error) from None
    check_release(str(getattr(vendor, "__version__", "")))
    return vendor


def check_release(version: str) -> None:
    """Nothing for HailoRT 4.18 and later of the 4 line.

    Raises:
        ConfigurationError: Code `accelerator_version`.
    """
    parts = version.split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        raise _unsupported(f"HailoRT tells no version ({version[:20]!r})")
    release = int(parts[0]), int(parts[1])
    if release < _OLDEST:
        raise _unsupported(f"HailoRT {version} has no InferModel interface, which came with 4.18")
    if release >= _FIRST_WITHOUT_HAILO8:
        raise _unsupported(f"HailoRT {version} no longer drives Hailo-8 and Hailo-8L")


def _has_chip(root: Path) -> bool:
    return any((root / _DEVICES).glob("*/board_location"))


def _vendor_with_chip(root: Path) -> ModuleType:
    vendor = load_vendor()
    if not _has_chip(root):
        raise UnavailableError(
            "no Hailo chip is here", remedy="check its seat and `lsmod | grep hailo`; see `primespark doctor`",
            code="accelerator_unavailable",
        )  # fmt: skip
    return vendor


def _release(device: Any) -> None:
    if device is not None:
        let_go(device.release)


def _another_chip(name: str) -> ConfigurationError:
    return ConfigurationError(
        f"the chip is a {name}, not a Hailo-8 or Hailo-8L", remedy="use the CPU", code="accelerator_version"
    )


def _unsupported(message: str) -> ConfigurationError:
    return ConfigurationError(
        message, remedy="install HailoRT 4.18 to 4.23: library, driver and Python package", code="accelerator_version"
    )


def _does_not_load(error: Exception) -> MissingDependencyError:
    reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
    return MissingDependencyError(
        f"the Python package hailo_platform does not load: {reason}",
        remedy="install python3-hailort and libhailort of one release; `primespark doctor` names them",
    )
