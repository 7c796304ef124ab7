"""Everything the binding has, under the vendor's path."""

from .._machine import MACHINE
from ._bindings import Detection
from ._control import Control
from ._devices import HEF, Device, VDevice, VDeviceParams
from ._exceptions import (
    ExceptionWrapper,
    HailoRTException,
    HailoRTFirmwareControlFailedException,
    HailoRTInvalidArgumentException,
    HailoRTInvalidHEFException,
    HailoRTInvalidOperationException,
    HailoRTNetworkGroupNotActivatedException,
    HailoRTNotFoundException,
    HailoRTStatusException,
    HailoRTStreamAborted,
    HailoRTStreamAbortedByUser,
    HailoRTTimeout,
    HailoRTUnsupportedOpcodeException,
)
from ._models import AsyncInferCompletionInfo, AsyncInferJob, ConfiguredInferModel, FormatOrder, InferModel
from ._pyhailort import DeviceArchitectureTypes, FormatType, HailoPowerMode, HailoSchedulingAlgorithm

__all__ = [
    "HEF",
    "AsyncInferCompletionInfo",
    "AsyncInferJob",
    "ConfiguredInferModel",
    "Control",
    "Detection",
    "Device",
    "DeviceArchitectureTypes",
    "ExceptionWrapper",
    "FormatOrder",
    "FormatType",
    "HailoPowerMode",
    "HailoRTException",
    "HailoRTFirmwareControlFailedException",
    "HailoRTInvalidArgumentException",
    "HailoRTInvalidHEFException",
    "HailoRTInvalidOperationException",
    "HailoRTNetworkGroupNotActivatedException",
    "HailoRTNotFoundException",
    "HailoRTStatusException",
    "HailoRTStreamAborted",
    "HailoRTStreamAbortedByUser",
    "HailoRTTimeout",
    "HailoRTUnsupportedOpcodeException",
    "HailoSchedulingAlgorithm",
    "InferModel",
    "VDevice",
    "VDeviceParams",
]

if MACHINE.holds("driver_exception"):
    from ._exceptions import HailoCommunicationClosedException as HailoCommunicationClosedException
    from ._exceptions import HailoRTDriverOperationFailedException as HailoRTDriverOperationFailedException
    from ._exceptions import HailoRTPCIeDriverException as HailoRTPCIeDriverException
if MACHINE.holds("architecture_status"):
    from ._exceptions import HailoRTHEFNotCompatibleWithDevice as HailoRTHEFNotCompatibleWithDevice
