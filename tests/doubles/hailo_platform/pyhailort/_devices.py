"""`HEF`, `Device` and `VDevice`."""

from __future__ import annotations

import contextlib
import os
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .. import _hef, _machine, _network
from .._machine import MACHINE
from .._runtime import Chip, Status
from ._control import Control
from ._exceptions import ExceptionWrapper, HailoRTException, raw_of
from ._models import InferModel, order_of
from ._pyhailort import FormatType, HailoSchedulingAlgorithm


def _read(source: str | bytes) -> _hef.Hef:
    try:
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
    except OSError:
        raise Status(13) from None
    try:
        return _hef.parse(data)
    except _hef.HefError as error:
        raise Status(error.status) from None


class HEF:
    """A parsed file."""

    def __init__(self, source: Any) -> None:
        if isinstance(source, Path):
            raise ValueError("HEF can only be created from str or bytes")
        with ExceptionWrapper():
            self._parsed = _read(source)

    def get_input_vstream_infos(self) -> list[Any]:
        """Name, shape (a tuple) and format of the inputs."""
        return [_info(stream) for stream in self._parsed.inputs]

    def get_output_vstream_infos(self) -> list[Any]:
        """The same of the outputs, with `nms_shape`."""
        return [_info(stream) for stream in self._parsed.outputs]


def _info(stream: _hef.Stream) -> Any:
    kind = "FLOAT32" if stream.nms and not stream.nms.by_score else stream.type
    form = SimpleNamespace(type=FormatType[kind], order=order_of(stream))
    info = SimpleNamespace(name=stream.name, shape=tuple(stream.shape), format=form)
    if stream.nms is not None:
        info.nms_shape = SimpleNamespace(
            number_of_classes=stream.nms.classes, max_bboxes_per_class=stream.nms.max_boxes
        )
    return info


class Device:
    """One physical chip; its failures are not wrapped."""

    def __init__(self, device_id: str | None = None) -> None:
        found = self.scan()
        if device_id is None and not found:
            raise HailoRTException("HailoRT device not found in the system")
        self.device_id = device_id or found[0]
        dead = _machine.MACHINE.dead_status()
        if dead:
            raise raw_of(Status(dead))
        # The channel must not keep the device: one that nobody holds is released.
        self._open = opened = threading.Event()
        opened.set()
        self.control = Control(opened.is_set)

    @classmethod
    def scan(cls) -> list[str]:
        """The chips of the machine."""
        status = _machine.MACHINE.open_status
        if status == 64:
            raise raw_of(Status(status))
        return _machine.MACHINE.device_ids()

    def release(self) -> None:
        """Control calls fail from now on; again is allowed."""
        self._open.clear()

    def __del__(self) -> None:
        if hasattr(self, "_open"):
            self.release()


class VDeviceParams:
    """What a new VDevice shall be; the defaults are Python's, not C++'s."""

    def __init__(self) -> None:
        self.device_ids: list[str] = []
        self.device_count = 1
        self.group_id = "UNIQUE"
        self.multi_process_service = False
        self._scheduling = int(HailoSchedulingAlgorithm.NONE)

    @property
    def scheduling_algorithm(self) -> int:
        """An int, whatever was set."""
        return self._scheduling

    @scheduling_algorithm.setter
    def scheduling_algorithm(self, value: HailoSchedulingAlgorithm) -> None:
        if not isinstance(value, HailoSchedulingAlgorithm):
            raise TypeError("scheduling_algorithm must be HailoSchedulingAlgorithm")
        self._scheduling = int(value)


class VDevice:
    """A chip as models see it."""

    def __init__(self, params: VDeviceParams | None = None, *, device_ids: list[str] | None = None) -> None:
        self._chip: Chip | None = None
        with ExceptionWrapper():
            if device_ids and params and params.device_ids:
                raise Status(6)
            # With identifiers of its own the parameters are ignored without a word.
            self._params = VDeviceParams() if device_ids or params is None else params
            if self._params.multi_process_service and not self._params.scheduling_algorithm:
                raise Status(2)
            self._pid = os.getpid()
            self._chip = Chip.open(self._params.group_id, device_ids or self._params.device_ids)

    @staticmethod
    def create_params() -> VDeviceParams:
        """Parameters to fill in."""
        return VDeviceParams()

    def get_physical_devices(self) -> list[Any]:
        """The chips behind it, each opened once more."""
        return [Device(_machine.DEVICE_ID)]

    def _create(self, source: str | bytes, name: str) -> InferModel:
        if not isinstance(source, str | bytes):
            raise TypeError("create_infer_model(): incompatible function arguments")
        if os.getpid() != self._pid:
            raise HailoRTException("InferModel can be created only from the process VDevice was created in.")
        if self._chip is None:
            raise HailoRTException("VDevice is released")
        with ExceptionWrapper():
            parsed = _read(source)
            _check_architecture(parsed)
            network = _network.Network(parsed)
        scheduled = bool(self._params.scheduling_algorithm)
        return InferModel(self._chip, network, scheduled, lambda: HEF(source))

    def release(self) -> None:
        """Release the chip; again is allowed; failures are not wrapped."""
        chip, self._chip = self._chip, None
        if chip is not None and os.getpid() == self._pid:
            chip.release()
            dead = _machine.MACHINE.dead_status()
            if dead:
                raise raw_of(Status(dead))

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.release()

    def __enter__(self) -> VDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _check_architecture(parsed: _hef.Hef) -> None:
    chip = _machine.MACHINE.architecture
    if parsed.architecture == "HAILO8L" and chip == "HAILO8":
        warnings.warn("HEF was compiled for Hailo8L device, while the device itself is Hailo8", stacklevel=4)
    elif parsed.architecture != chip:
        raise Status(93 if MACHINE.holds("architecture_status") else 26)


if MACHINE.holds("name_argument"):

    def _create_infer_model(self: VDevice, hef_source: str | bytes, name: str = "") -> InferModel:
        """A model of the HEF, not yet configured."""
        return self._create(hef_source, name)

    VDevice.create_infer_model = _create_infer_model  # type: ignore[attr-defined]
elif MACHINE.holds("infer_model"):

    def _create_infer_model_418(self: VDevice, hef_source: str | bytes, network_name: str = "") -> InferModel:
        """A model of the HEF, not yet configured."""
        return self._create(hef_source, network_name)

    VDevice.create_infer_model = _create_infer_model_418  # type: ignore[attr-defined]
