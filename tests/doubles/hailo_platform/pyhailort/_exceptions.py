"""The exceptions of the binding, and how a status becomes one."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from .._machine import MACHINE
from .._runtime import Status

NAMES = {
    2: "HAILO_INVALID_ARGUMENT", 3: "HAILO_OUT_OF_HOST_MEMORY", 4: "HAILO_TIMEOUT", 6: "HAILO_INVALID_OPERATION",
    13: "HAILO_OPEN_FILE_FAILURE", 18: "HAILO_FW_CONTROL_FAILURE", 26: "HAILO_INVALID_HEF",
    36: "HAILO_DRIVER_OPERATION_FAILED", 48: "HAILO_UNSUPPORTED_OPCODE", 61: "HAILO_NOT_FOUND",
    62: "HAILO_COMMUNICATION_CLOSED", 63: "HAILO_STREAM_ABORT",
    64: "HAILO_DRIVER_NOT_INSTALLED", 69: "HAILO_NETWORK_GROUP_NOT_ACTIVATED", 73: "HAILO_DEVICE_IN_USE",
    74: "HAILO_OUT_OF_PHYSICAL_DEVICES", 76: "HAILO_INVALID_DRIVER_VERSION", 77: "HAILO_RPC_FAILED",
    79: "HAILO_NOT_SUPPORTED", 82: "HAILO_QUEUE_IS_FULL", 87: "HAILO_DRIVER_TIMEOUT",
    91: "HAILO_HEF_FILE_CORRUPTED", 92: "HAILO_HEF_NOT_SUPPORTED", 93: "HAILO_HEF_NOT_COMPATIBLE_WITH_DEVICE",
}  # fmt: skip


class HailoRTException(Exception):  # noqa: N818 (the vendor's name)
    """Base of those the binding raises itself."""


_RawBase: Any = HailoRTException if MACHINE.holds("raw_is_subclass") else Exception


class HailoRTStatusException(_RawBase):  # type: ignore[misc]
    """The extension's own: its only argument is the status as text."""


class HailoRTFirmwareControlFailedException(HailoRTException):
    """Status 18."""


class HailoRTUnsupportedOpcodeException(HailoRTException):
    """Status 48."""


class HailoRTTimeout(HailoRTException):
    """Status 4."""


class HailoRTStreamAborted(HailoRTException):
    """Status 63 of older streams."""


class HailoRTStreamAbortedByUser(HailoRTException):
    """Status 63."""


class HailoRTInvalidOperationException(HailoRTException):
    """Status 6."""


class HailoRTInvalidArgumentException(HailoRTException):
    """Status 2."""


class HailoRTNotFoundException(HailoRTException):
    """Status 61."""


class HailoRTInvalidHEFException(HailoRTException):
    """Status 26."""


class HailoRTNetworkGroupNotActivatedException(HailoRTException):
    """Status 69."""


_LOG = "See hailort.log for more information"
_OWN: dict[int, tuple[type[HailoRTException], str]] = {
    2: (HailoRTInvalidArgumentException, f"Invalid argument. {_LOG}"),
    4: (HailoRTTimeout, "Received a timeout - hailort has failed because a timeout had occurred"),
    6: (HailoRTInvalidOperationException, f"Invalid operation. {_LOG}"),
    18: (HailoRTFirmwareControlFailedException, "libhailort control operation failed"),
    48: (HailoRTUnsupportedOpcodeException, "HailoRT has failed because an unsupported opcode was sent to device"),
    26: (HailoRTInvalidHEFException, f"Invalid HEF. {_LOG}"),
    61: (HailoRTNotFoundException, f"Item not found. {_LOG}"),
    63: (HailoRTStreamAbortedByUser, "Stream aborted by user"),
    69: (HailoRTNetworkGroupNotActivatedException, "Network group is not activated"),
}

if MACHINE.holds("driver_exception"):

    class HailoRTDriverOperationFailedException(HailoRTException):
        """Status 36."""

    class HailoCommunicationClosedException(HailoRTException):
        """Status 62."""

    HailoRTPCIeDriverException = HailoRTDriverOperationFailedException
    _OWN[36] = (HailoRTDriverOperationFailedException, "Failure in hailort driver ioctl. run dmesg for more info")
    _OWN[62] = (HailoCommunicationClosedException, "Communication closed")

if MACHINE.holds("architecture_status"):

    class HailoRTHEFNotCompatibleWithDevice(HailoRTException):
        """Status 93."""

    _OWN[93] = (HailoRTHEFNotCompatibleWithDevice, f"HEF is not compatible with device. {_LOG}")


def exception_of(status: int) -> HailoRTException:
    """What the wrapped calls raise for a status."""
    if status in _OWN:
        kind, text = _OWN[status]
        return kind(text)
    return HailoRTException(f"libhailort failed with error: {status} ({NAMES.get(status, 'HAILO_UNKNOWN')})")


def raw_of(status: Status) -> Exception:
    """What the calls without the wrapper raise."""
    raw: Exception = HailoRTStatusException(str(status.code))
    return raw


class ExceptionWrapper:
    """Turns a status into the binding's exception."""

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, Status):
            raise exception_of(error.code) from raw_of(error)
