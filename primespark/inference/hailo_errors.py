"""HailoRT's failures as errors of ours.

HailoRT tells its status in three ways: by the class of the exception, by a number that stands only in a text, and, from
calls its binding does not wrap, by a raw exception that is no `HailoRTException`. `status_of` reads all three without
importing the vendor's package.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from primespark.core.logging import get_logger
from primespark.errors import ConfigurationError, IntegrityError, PrimeSparkError, UnavailableError

_RAW = "HailoRTStatusException"
_IN_TEXT = re.compile(r"libhailort failed with error: (\d+)")
_BY_CLASS = {
    "HailoRTInvalidArgumentException": 2,
    "HailoRTTimeout": 4,
    "HailoRTInvalidOperationException": 6,
    "HailoRTFirmwareControlFailedException": 18,
    "HailoRTInvalidHEFException": 26,
    "HailoRTDriverOperationFailedException": 36,
    "HailoRTPCIeDriverException": 36,
    "HailoRTUnsupportedOpcodeException": 48,
    "HailoRTNotFoundException": 61,
    "HailoCommunicationClosedException": 62,
    "HailoRTStreamAborted": 63,
    "HailoRTStreamAbortedByUser": 63,
    "HailoRTNetworkGroupNotActivatedException": 69,
    "HailoRTHEFNotCompatibleWithDevice": 93,
}
_MAX_REASON = 200

log = get_logger(__name__)


class _Kind(StrEnum):
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    VERSION = "version"
    MODEL = "model"
    ARCHITECTURE = "architecture"


class _Meaning(NamedTuple):
    kind: _Kind
    cause: str
    remedy: str


# After these the device is opened anew, not only the model configured again.
_OF_THE_CHIP = frozenset({36, 62, 64, 77, 87})
_REFUSED = frozenset({2, 6, 61, 79})
_DMESG = "see `dmesg` for lines of hailo; power the machine off and on if it stays"
_FETCH = "fetch the HEF again, compiled for this chip by a compiler of this HailoRT"
_MEANINGS = {
    3: _Meaning(_Kind.UNAVAILABLE, "the machine has no memory left for the accelerator", "stop other programs"),
    4: _Meaning(_Kind.TIMEOUT, "the accelerator did not answer in time", _DMESG),
    13: _Meaning(_Kind.MODEL, "the HEF cannot be opened", "check its path and permissions"),
    26: _Meaning(_Kind.ARCHITECTURE, "the HEF is invalid or of another architecture", _FETCH),
    36: _Meaning(_Kind.UNAVAILABLE, "the driver failed", _DMESG),
    62: _Meaning(_Kind.UNAVAILABLE, "the connection to the accelerator was closed", _DMESG),
    63: _Meaning(_Kind.UNAVAILABLE, "the accelerator dropped the frame", "run it again"),
    64: _Meaning(_Kind.UNAVAILABLE, "the driver is not loaded", "sudo modprobe hailo_pci"),
    73: _Meaning(_Kind.UNAVAILABLE, "another process has the accelerator", "stop it: `sudo fuser -v /dev/hailo0`"),
    74: _Meaning(_Kind.UNAVAILABLE, "no free accelerator", "stop the process that has it: `sudo fuser -v /dev/hailo0`"),
    76: _Meaning(
        _Kind.VERSION,
        "driver and library are of different releases",
        "install both of one release and reboot; `primespark doctor` names them",
    ),
    77: _Meaning(_Kind.UNAVAILABLE, "HailoRT's service does not answer", "sudo systemctl restart hailort.service"),
    82: _Meaning(_Kind.UNAVAILABLE, "the accelerator's queue is full", "run it again"),
    87: _Meaning(_Kind.TIMEOUT, "the driver waited in vain for the accelerator", _DMESG),
    91: _Meaning(_Kind.MODEL, "the HEF is damaged", _FETCH),
    92: _Meaning(_Kind.MODEL, "the file is no HEF this HailoRT reads", _FETCH),
    93: _Meaning(_Kind.ARCHITECTURE, "the HEF is for another architecture", _FETCH),
}


def status_of(error: BaseException) -> int | None:
    """HailoRT's status behind an exception, none when it tells none."""
    name = type(error).__name__
    if name == _RAW and error.args and str(error.args[0]).isdigit():
        return int(str(error.args[0]))
    inside = _IN_TEXT.search(str(error))
    return int(inside.group(1)) if inside else _BY_CLASS.get(name)


def is_of_the_chip(error: BaseException) -> bool:
    """Whether the device itself failed, and with it every model on it."""
    return status_of(error) in _OF_THE_CHIP


def translated_first_load(error: BaseException, doing: str) -> PrimeSparkError:
    """As `translated`, for a model that never ran: an operation refused then is the file's fault and stays so."""
    if status_of(error) in _REFUSED:
        return IntegrityError(
            f"{doing}: HailoRT does not take it as one network (HailoRT status {status_of(error)})",
            remedy=_FETCH,
            code="bad_model",
        )
    return translated(error, doing)


def translated(error: BaseException, doing: str) -> PrimeSparkError:
    """An error of ours for any exception that came from the vendor's package.

    Args:
        error: What was raised.
        doing: What was tried, as `opening the accelerator`.
    """
    status = status_of(error)
    meaning = _MEANINGS.get(status or 0)
    if meaning is None:
        reason = " ".join(str(error).split())[:_MAX_REASON] or type(error).__name__
        return UnavailableError(
            f"{doing}: {reason} (HailoRT status {status})" if status else f"{doing}: {reason}",
            remedy="see hailort.log in the working directory",
            code="accelerator_unavailable",
        )
    message = f"{doing}: {meaning.cause} (HailoRT status {status})"
    if meaning.kind is _Kind.MODEL:
        return IntegrityError(message, remedy=meaning.remedy, code="bad_model")
    if meaning.kind is _Kind.ARCHITECTURE:
        return IntegrityError(message, remedy=meaning.remedy, code="wrong_architecture")
    if meaning.kind is _Kind.VERSION:
        return ConfigurationError(message, remedy=meaning.remedy, code="accelerator_version")
    if meaning.kind is _Kind.TIMEOUT:
        return UnavailableError(message, remedy=meaning.remedy, code="accelerator_timeout")
    return UnavailableError(message, remedy=meaning.remedy, code="accelerator_unavailable")


def let_go(release: Callable[[], object]) -> None:
    """Call what releases something of the vendor's package; where it refuses, that is logged and no more.

    What was dead before has nothing to release, and is dropped with its object.
    """
    try:
        release()
    # Raw exceptions of the binding have no base of their own.
    except Exception as error:  # noqa: BLE001
        log.info("accelerator_release_refused", cause=f"{type(error).__name__}: {error}"[:_MAX_REASON])
