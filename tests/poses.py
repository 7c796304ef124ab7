"""One network of poses as two files: YOLOv8-pose's ONNX form, decoded in the graph, and a HEF of its raw heads.

The weights are random, what it sees are colours; its heads have the shapes of the vendor's yolov8s_pose.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from primespark.inference import catalog
from tests.doubles.hailo import Hef, Stream

SIDE, STRIDES, STEPS = 640, (8, 16, 32), 16
POINTS = catalog.read_lines("coco17_keypoints.txt")
CHANNELS = {"boxes": 4 * STEPS, "scores": 1, "points": 3 * len(POINTS)}
MINIMUM = 0.5
# As the vendor compiles them: the points in 16 bits, the rest in 8.
_QUANTISED = {
    "boxes": ("UINT8", 40 / 255, 128.0),
    "scores": ("UINT8", 1 / 255, 0.0),
    "points": ("UINT16", 40 / 65535, 32768.0),
}
_SPREAD = {"boxes": 8.0, "scores": 4.0, "points": 4.0}

Node = NodeProto


class _Graph:
    """Nodes and constants, gathered under names of their own."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, Any] = {}

    def add(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        names = [one if isinstance(one, str) else self._constant(one) for one in inputs]
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output

    def name(self, tensor: str, name: str) -> str:
        self.nodes.append(helper.make_node("Identity", [tensor], [name]))
        return name

    def _constant(self, value: Any) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = value
        return name

    def model(self, given: tuple[str, int, list[int]], outputs: dict[str, list[int]]) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "poses",
            [helper.make_tensor_value_info(*given)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        return bytes(model.SerializeToString())


def _f(*values: float) -> Any:
    return np.array(values, np.float32)


def _heads(graph: _Graph, planes: str, stride: int) -> dict[str, str]:
    """Raw heads [1, channels, rows, columns] of the mean colours of each cell; the score is a logit."""
    random = np.random.default_rng(stride)
    means = graph.add("Sub", graph.add("AveragePool", planes, kernel_shape=[stride] * 2, strides=[stride] * 2), _f(0.5))
    heads = {}
    for head, channels in CHANNELS.items():
        weights = random.normal(0, _SPREAD[head], (channels, 3, 1, 1)).astype(np.float32)
        bias = random.normal(-2 if head == "scores" else 0, 0.5, channels).astype(np.float32)
        heads[head] = graph.add("Conv", means, weights, bias)
    return heads


def onnx_file() -> bytes:
    """The network for the processor, [1, 56, 8400], decoded as Ultralytics exports it."""
    graph = _Graph()
    decoded = []
    for stride in STRIDES:
        side, heads = SIDE // stride, _heads(graph, "images", stride)
        flat = {
            name: graph.add("Reshape", head, np.array([1, CHANNELS[name], side * side])) for name, head in heads.items()
        }
        middles = np.arange(side, dtype=np.float32) + 0.5
        anchors = np.stack(np.meshgrid(middles, middles)).reshape(1, 2, side * side)
        # `DFL`: softmax over the steps and a convolution with their numbers; then `dist2bbox`.
        steps = graph.add("Reshape", flat["boxes"], np.array([1, 4, STEPS, side * side]))
        shares = graph.add("Softmax", graph.add("Transpose", steps, perm=[0, 2, 1, 3]), axis=1)
        numbers = np.arange(STEPS, dtype=np.float32).reshape(1, STEPS, 1, 1)
        sides = graph.add("Reshape", graph.add("Conv", shares, numbers), np.array([1, 4, side * side]))
        low = graph.add("Sub", anchors, graph.add("Gather", sides, np.array([0, 1]), axis=1))
        high = graph.add("Add", anchors, graph.add("Gather", sides, np.array([2, 3]), axis=1))
        middle = graph.add("Div", graph.add("Add", low, high), _f(2))
        box = graph.add("Concat", middle, graph.add("Sub", high, low), axis=1)
        # `kpts_decode`.
        points = graph.add("Reshape", flat["points"], np.array([1, len(POINTS), 3, side * side]))
        places = graph.add("Mul", graph.add("Gather", points, np.array([0, 1]), axis=2), _f(2))
        places = graph.add("Add", places, (anchors - 0.5).reshape(1, 1, 2, side * side))
        places = graph.add("Mul", places, _f(stride))
        sure = graph.add("Sigmoid", graph.add("Gather", points, np.array([2]), axis=2))
        body = graph.add("Concat", places, sure, axis=2)
        decoded.append(
            graph.add(
                "Concat",
                graph.add("Mul", box, _f(stride)),
                graph.add("Sigmoid", flat["scores"]),
                graph.add("Reshape", body, np.array([1, CHANNELS["points"], side * side])),
                axis=1,
            )
        )
    graph.name(graph.add("Concat", *decoded, axis=2), "output0")
    places_in_all = sum((SIDE // stride) ** 2 for stride in STRIDES)
    return graph.model(("images", TensorProto.FLOAT, [1, 3, SIDE, SIDE]), {"output0": [1, 56, places_in_all]})


def hef(*, is_quantised: bool, has_sigmoid: bool = True, names: dict[str, str] | None = None) -> bytes:
    """The network for the chip: from an image of bytes to nine heads in the vendor's order, the score's sigmoid in it.

    Args:
        is_quantised: In as few bits as the vendor's; else in float, to compare numbers.
        has_sigmoid: As the vendor's; else the scores are logits.
        names: Which heads stand where, to make a wrong file.
    """
    graph = _Graph()
    floats = graph.add("Div", graph.add("Cast", "image", to=TensorProto.FLOAT), _f(255))
    planes = graph.add("Transpose", floats, perm=[0, 3, 1, 2])
    streams, outputs = [], {}
    for stride in reversed(STRIDES):
        heads = _heads(graph, planes, stride)
        if has_sigmoid:
            heads["scores"] = graph.add("Sigmoid", heads["scores"])
        for head in CHANNELS:
            chosen = (names or {}).get(head, head)
            shape = (SIDE // stride, SIDE // stride, CHANNELS[chosen])
            name = graph.name(graph.add("Transpose", heads[chosen], perm=[0, 2, 3, 1]), f"{head}{stride}")
            outputs[name] = [1, *shape]
            steps = _QUANTISED[chosen if has_sigmoid or chosen != "scores" else "boxes"]
            kind, scale, zero_point = steps if is_quantised else ("FLOAT32", 0.0, 0.0)
            streams.append(Stream(f"poses/{name}", shape, name, kind, scale, zero_point))
    model = graph.model(("image", TensorProto.UINT8, [1, SIDE, SIDE, 3]), outputs)
    image = Stream("poses/input_layer1", (SIDE, SIDE, 3), "image")
    return Hef("poses", (image,), tuple(streams), onnx=model).to_bytes()
