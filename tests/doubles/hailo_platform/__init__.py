"""A double of the vendor's package: what our engine uses of HailoRT 4.18 to 4.23, its traps included.

What it claims stands in `_claims.py`; docs/hailo.md prints it. Set `_machine.MACHINE` before the first import of the
rest, see `tests/doubles/hailo.py`.
"""

from ._machine import MACHINE

__version__ = MACHINE.version

if MACHINE.import_error:
    raise ImportError(MACHINE.import_error)

from .pyhailort.pyhailort import (
    HEF,
    AsyncInferJob,
    Device,
    FormatOrder,
    FormatType,
    HailoPowerMode,
    HailoRTException,
    HailoRTStreamAbortedByUser,
    HailoSchedulingAlgorithm,
    VDevice,
)

__all__ = [
    "HEF",
    "AsyncInferJob",
    "Device",
    "FormatOrder",
    "FormatType",
    "HailoPowerMode",
    "HailoRTException",
    "HailoRTStreamAbortedByUser",
    "HailoSchedulingAlgorithm",
    "VDevice",
]

if MACHINE.holds("driver_exception"):
    from .pyhailort.pyhailort import HailoCommunicationClosedException as HailoCommunicationClosedException

    __all__ += ["HailoCommunicationClosedException"]
