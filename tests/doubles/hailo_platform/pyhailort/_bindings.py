"""`Bindings`: the buffers of one frame, and what a release makes of an NMS output's buffer."""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import _hef
from .._machine import MACHINE
from .._network import BOX_BYTES
from .._runtime import Status
from ._exceptions import ExceptionWrapper, HailoRTException


class Detection(NamedTuple):
    """One box of an NMS_BY_SCORE output."""

    y_min: float
    x_min: float
    y_max: float
    x_max: float
    score: float
    class_id: int


class _Bound:
    """One buffer of a frame."""

    def __init__(self, stream: _hef.Stream, buffers: dict[str, NDArray[Any]]) -> None:
        self._stream = stream
        self._buffers = buffers

    def set_buffer(self, buffer: NDArray[Any]) -> None:
        """Neither size nor type are looked at here."""
        if MACHINE.holds("c_contiguous") and not buffer.flags.c_contiguous:
            raise HailoRTException("Buffer must be C_CONTIGUOUS")
        nms = self._stream.nms
        if nms is not None and nms.by_score and buffer.dtype != np.uint8:
            raise HailoRTException("Buffer of NMS by score must be uint8")
        self._buffers[self._stream.name] = buffer

    def get_buffer(self, tf_format: bool | None = False) -> Any:
        """The buffer; of an NMS output what the release makes of it, the raw one with None."""
        buffer = self._buffers.get(self._stream.name)
        nms = self._stream.nms
        if tf_format is None or nms is None or buffer is None:
            return buffer
        if nms.by_score:
            return _detections(buffer)
        lists = _class_lists(buffer.reshape(-1), nms.classes)
        if tf_format:
            dense = np.zeros((nms.classes, 5, nms.max_boxes), np.float32)
            for column, rows in enumerate(lists):
                dense[column, :, : len(rows)] = rows.T
            return dense
        return lists if MACHINE.holds("flat_lists") else [lists]


def _class_lists(flat: NDArray[Any], classes: int) -> list[NDArray[Any]]:
    lists, at = [], 0
    for _ in range(classes):
        count = int(flat[at])
        rows = flat[at + 1 : at + 1 + 5 * count].reshape(count, 5)
        # Without boxes it is of another type.
        lists.append(rows if count else np.empty([0, 5]))
        at += 1 + 5 * count
    return lists


def _detections(buffer: NDArray[Any]) -> list[Detection]:
    data = buffer.tobytes()
    (count,) = struct.unpack_from("<H", data)
    found = [Detection(*struct.unpack_from("<5fH", data, 2 + BOX_BYTES * index)) for index in range(count)]
    return sorted(found, key=lambda one: -one.score)


class Bindings:
    """The buffers of one frame."""

    def __init__(self, hef: _hef.Hef) -> None:
        self.buffers: tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]] = ({}, {})
        self._inputs = [_Bound(stream, self.buffers[0]) for stream in hef.inputs]
        self._outputs = [_Bound(stream, self.buffers[1]) for stream in hef.outputs]

    def input(self, name: str = "") -> Any:
        """The input of this name, or the only one."""
        return _chosen_bound(self._inputs, name)

    def output(self, name: str = "") -> Any:
        """The output of this name, or the only one."""
        return _chosen_bound(self._outputs, name)


def _chosen_bound(bound: list[_Bound], name: str) -> _Bound:
    with ExceptionWrapper():
        if not name and len(bound) != 1:
            raise Status(6)
        for one in bound:
            if name in ("", one._stream.name):
                return one
        raise Status(61)
