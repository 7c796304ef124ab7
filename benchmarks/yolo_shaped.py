"""A detector of YOLOv8n's shape with random weights: cost and output form are real, the answers are not."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

SIDE, CLASSES = 640, 80
_BINS = 16
_STRIDES = (8, 16, 32)
_SEED = 3
_SCORE_BIAS = -4.5


def yolo_shaped() -> bytes:
    """An ONNX file from float32 [1, 3, 640, 640] to float32 [1, 84, 8400]; 3.1 M weights, 8.7 GFLOP."""
    net = _Network()
    two = net.fused(net.conv(net.conv("images", 3, 16, stride=2), 16, 32, stride=2), 32, 32, 1, shortcut=True)
    three = net.fused(net.conv(two, 32, 64, stride=2), 64, 64, 2, shortcut=True)
    four = net.fused(net.conv(three, 64, 128, stride=2), 128, 128, 2, shortcut=True)
    five = net.pooled(net.fused(net.conv(four, 128, 256, stride=2), 256, 256, 1, shortcut=True), 256)
    up_four = net.fused(net.joined(net.doubled(five), four), 384, 128, 1)
    out_three = net.fused(net.joined(net.doubled(up_four), three), 192, 64, 1)
    out_four = net.fused(net.joined(net.conv(out_three, 64, 64, stride=2), up_four), 192, 128, 1)
    out_five = net.fused(net.joined(net.conv(out_four, 128, 128, stride=2), five), 384, 256, 1)
    boxes, scores = zip(
        *(net.head(level, channels) for level, channels in ((out_three, 64), (out_four, 128), (out_five, 256))),
        strict=True,
    )
    net.node("Concat", [net.boxes(boxes), net.node("Sigmoid", [net.joined(*scores, axis=2)])], "output0", axis=1)
    return net.to_bytes()


class _Network:
    """A graph that grows node by node; each method answers the name of what it adds."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(_SEED)
        self._nodes: list[Any] = []
        self._weights: list[Any] = []

    def node(self, operator: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def conv(
        self, given: str, channels: int, out: int, size: int = 3, stride: int = 1, bias: float | None = None
    ) -> str:
        """A convolution with SiLU behind it; without it where a bias is given."""
        scale = np.sqrt(2.0 / (channels * size * size))
        weights = self._random.normal(0, scale, (out, channels, size, size)).astype(np.float32)
        found = self.node(
            "Conv",
            [given, self.constant(weights), self.constant(np.full(out, bias or 0, np.float32))],
            kernel_shape=[size] * 2,
            strides=[stride] * 2,
            pads=[size // 2] * 4,
        )
        return found if bias is not None else self.node("Mul", [found, self.node("Sigmoid", [found])])

    def joined(self, *parts: str, axis: int = 1) -> str:
        return self.node("Concat", list(parts), axis=axis)

    def doubled(self, given: str) -> str:
        return self.node("Resize", [given, "", self.constant(np.array([1, 1, 2, 2], np.float32))], mode="nearest")

    def fused(self, given: str, channels: int, out: int, repeats: int, shortcut: bool = False) -> str:
        """Half of the channels goes through `repeats` bottlenecks; all that arose is joined."""
        half = out // 2
        whole = self.conv(given, channels, out, 1)
        first, last = f"{whole}a", f"{whole}b"
        self._nodes.append(helper.make_node("Split", [whole], [first, last], axis=1, num_outputs=2))
        parts = [first, last]
        for _ in range(repeats):
            deeper = self.conv(self.conv(parts[-1], half, half), half, half)
            parts.append(self.node("Add", [parts[-1], deeper]) if shortcut else deeper)
        return self.conv(self.joined(*parts), (2 + repeats) * half, out, 1)

    def pooled(self, given: str, channels: int) -> str:
        parts = [self.conv(given, channels, channels // 2, 1)]
        for _ in range(3):
            parts.append(self.node("MaxPool", [parts[-1]], kernel_shape=[5, 5], pads=[2] * 4, strides=[1, 1]))
        return self.conv(self.joined(*parts), 2 * channels, channels, 1)

    def head(self, level: str, channels: int) -> tuple[str, str]:
        """Distances [1, 64, places] and scores [1, 80, places] of a level."""
        box = self.conv(self.conv(self.conv(level, channels, 64), 64, 64), 64, 4 * _BINS, 1, bias=1.0)
        score = self.conv(self.conv(self.conv(level, channels, 80), 80, 80), 80, CLASSES, 1, bias=_SCORE_BIAS)
        flat_box = self.constant(np.array([1, 4 * _BINS, -1]))
        flat_score = self.constant(np.array([1, CLASSES, -1]))
        return self.node("Reshape", [box, flat_box]), self.node("Reshape", [score, flat_score])

    def boxes(self, levels: tuple[str, ...]) -> str:
        """Centre and size in pixels, of the expected distances to the four sides."""
        centres, strides = _places()
        spread = self.node("Reshape", [self.joined(*levels, axis=2), self.constant(np.array([1, 4, _BINS, -1]))])
        shares = self.node("Softmax", [spread], axis=2)
        bins = self.constant(np.arange(_BINS, dtype=np.float32).reshape(1, 1, _BINS, 1))
        sides = self.node("ReduceSum", [self.node("Mul", [shares, bins]), self.constant(np.array([2]))], keepdims=0)
        near, far = f"{sides}a", f"{sides}b"
        self._nodes.append(helper.make_node("Split", [sides], [near, far], axis=1, num_outputs=2))
        shift = self.node("Div", [self.node("Sub", [far, near]), self.constant(np.array(2, np.float32))])
        middle = self.node("Add", [shift, self.constant(centres)])
        size = self.node("Add", [near, far])
        return self.node("Mul", [self.joined(middle, size), self.constant(strides)])

    def to_bytes(self) -> bytes:
        graph = helper.make_graph(
            self._nodes,
            "yolo_shaped",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
            [helper.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 4 + CLASSES, None])],
            self._weights,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return bytes(model.SerializeToString())


def _places() -> tuple[Any, Any]:
    """Centres in cells [1, 2, 8400], and the strides [1, 1, 8400]."""
    centres, strides = [], []
    for stride in _STRIDES:
        count = SIDE // stride
        middles = np.arange(count, dtype=np.float32) + 0.5
        centres.append(np.stack(np.meshgrid(middles, middles)).reshape(2, -1))
        strides.append(np.full(count * count, stride, np.float32))
    return np.concatenate(centres, axis=1)[np.newaxis], np.concatenate(strides).reshape(1, 1, -1)
