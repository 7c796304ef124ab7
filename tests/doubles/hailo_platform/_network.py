"""Computes a frame of a double's HEF: quantise, run the network, suppress, quantise again."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._hef import Hef, Nms, Stream

Array = NDArray[Any]
BOX_BYTES = 22
_DTYPES: dict[str, Any] = {"UINT8": np.uint8, "UINT16": np.uint16, "FLOAT32": np.float32}


def add_one(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """`out` = `in` + 1."""
    return {"out": inputs["in"].astype(np.float32) + 1}


def given_boxes(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """`scores` and `boxes` taken from the input rows (y_min, x_min, y_max, x_max, one score per class)."""
    rows = inputs["in"].astype(np.float32)
    return {"boxes": rows[:, :4], "scores": rows[:, 4:]}


def nothing_seen(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """`scores` and `boxes` of an image where nothing is, for 80 classes."""
    return {"boxes": np.zeros((1, 4), np.float32), "scores": np.zeros((1, 80), np.float32)}


FUNCTIONS: dict[str, Callable[[Mapping[str, Array]], dict[str, Array]]] = {
    "add_one": add_one,
    "given_boxes": given_boxes,
    "nothing_seen": nothing_seen,
}


class Network:
    """A HEF that can compute; the ONNX session is made once."""

    def __init__(self, hef: Hef) -> None:
        self.hef = hef
        self._session: Any = None
        if hef.onnx:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(hef.onnx, options, providers=["CPUExecutionProvider"])

    def compute(self, inputs: Mapping[str, Array], types: Mapping[str, str]) -> dict[str, Array]:
        """Outputs by stream name in the host's types, from inputs by stream name (shape of the stream)."""
        feeds = {stream.tensor: _to_network(stream, inputs[stream.name]) for stream in self.hef.inputs}
        tensors = self._run(feeds)
        return {stream.name: _to_host(stream, tensors, types[stream.name]) for stream in self.hef.outputs}

    def _run(self, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        if self._session is None:
            return FUNCTIONS[self.hef.function](feeds)
        names = [item.name for item in self._session.get_outputs()]
        results = self._session.run(names, {name: value[np.newaxis] for name, value in feeds.items()})
        return {name: value[0] if value.ndim else value[np.newaxis] for name, value in zip(names, results, strict=True)}


def host_dtype(stream: Stream, host_type: str) -> Any:
    """Type of the host's buffer."""
    if stream.nms is not None:
        return np.uint8 if stream.nms.by_score else np.float32
    return _DTYPES[stream.type if host_type == "AUTO" else host_type]


def host_shape(stream: Stream) -> list[int]:
    """Shape of the host's buffer."""
    if stream.nms is None:
        return list(stream.shape)
    if stream.nms.by_score:
        return [2 + BOX_BYTES * stream.nms.max_boxes]
    return [stream.nms.classes * (1 + 5 * stream.nms.max_boxes)]


def _to_network(stream: Stream, given: Array) -> Array:
    if not stream.scale:
        return given
    quantised = given if given.dtype != np.float32 else _quantised(stream, given)
    return ((quantised.astype(np.float32) - stream.zero_point) * stream.scale).astype(np.float32)


def _to_host(stream: Stream, tensors: Mapping[str, Array], host_type: str) -> Array:
    if stream.nms is not None:
        boxes = tensors[stream.nms.boxes].reshape(-1, 4)
        kept = suppress(stream.nms, tensors[stream.nms.scores], boxes)
        return by_score(stream.nms, kept) if stream.nms.by_score else by_class(stream.nms, kept)
    value = tensors[stream.tensor]
    if not stream.scale:
        return value.astype(host_dtype(stream, host_type), copy=False)
    quantised = _quantised(stream, value)
    if host_type != "FLOAT32":
        return quantised
    return ((quantised.astype(np.float32) - stream.zero_point) * stream.scale).astype(np.float32)


def _quantised(stream: Stream, value: Array) -> Array:
    dtype = _DTYPES[stream.type]
    steps = np.rint(value / np.float32(stream.scale)) + stream.zero_point
    quantised: Array = np.clip(steps, 0, np.iinfo(dtype).max).astype(dtype)
    return quantised


def suppress(nms: Nms, scores: Array, boxes: Array) -> list[list[tuple[float, Array]]]:
    """Per class what stays, the surest first: textbook suppression within the class."""
    kept: list[list[tuple[float, Array]]] = []
    for column in range(nms.classes):
        of_class = scores[:, column]
        order = [row for row in np.argsort(-of_class, kind="stable") if of_class[row] >= nms.score_threshold]
        chosen: list[int] = []
        for row in order:
            if all(_iou(boxes[row], boxes[other]) <= nms.iou_threshold for other in chosen):
                chosen.append(int(row))
        kept.append([(float(of_class[row]), boxes[row]) for row in chosen[: nms.max_boxes]])
    return kept


def by_class(nms: Nms, kept: list[list[tuple[float, Array]]]) -> Array:
    """Float32: for each class the count and its packed boxes; what lies behind them is not cleared by HailoRT."""
    flat: list[float] = []
    for rows in kept:
        flat.append(len(rows))
        for score, box in rows:
            flat.extend([*(float(part) for part in box), score])
    return np.asarray(flat, np.float32)


def by_score(nms: Nms, kept: list[list[tuple[float, Array]]]) -> Array:
    """Bytes: a uint16 count, then 22 bytes a box, the surest first."""
    rows = [(score, column, box) for column, of_class in enumerate(kept) for score, box in of_class]
    rows.sort(key=lambda row: -row[0])
    rows = rows[: nms.max_boxes]
    packed = struct.pack("<H", len(rows))
    for score, column, box in rows:
        packed += struct.pack("<5fH", *(float(part) for part in box), score, column)
    return np.frombuffer(packed, np.uint8)


def _iou(one: Array, other: Array) -> float:
    height = min(one[2], other[2]) - max(one[0], other[0])
    width = min(one[3], other[3]) - max(one[1], other[1])
    if height <= 0 or width <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(height * width / (areas[0] + areas[1] - height * width))
