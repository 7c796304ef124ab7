"""One detector as two files that see the same: an ONNX model of YOLOv8's form, and a HEF for the double."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.doubles import hailo
from tests.doubles.hailo import Nms, Stream

SIDE, CELL = 640, 40
CELLS = (SIDE // CELL) ** 2
LABELS = ("red", "green", "blue")
MINIMUM = 0.6
OVERLAP = 0.5


def _constant(name: str, value: Any) -> TensorProto:
    return numpy_helper.from_array(np.asarray(value), name)


def colours(on_chip: bool) -> bytes:
    """A network that sees cells of 40 x 40 pixels by their mean colours: the class is the strongest one, and the
    brighter the cell, the larger and the further right and down is the box.

    For the processor it takes and gives what YOLOv8 does, for the chip what a HEF before its suppression does.
    """
    middles = (np.arange(SIDE // CELL, dtype=np.float32) + 0.5) * CELL
    centres = np.stack(np.meshgrid(middles, middles)).reshape(1, 2, CELLS)
    before = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "levels"], ["shares"]),
        helper.make_node("Transpose", ["shares"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    seen = [
        helper.make_node("AveragePool", ["planes"], ["pooled"], kernel_shape=[CELL] * 2, strides=[CELL] * 2),
        helper.make_node("Reshape", ["pooled", "flat"], ["means"]),
        helper.make_node("Mul", ["means", "sharpness"], ["sharp"]),
        helper.make_node("Softmax", ["sharp"], ["classes"], axis=1),
        helper.make_node("Gather", ["means", "first two"], ["shift"], axis=1),
        helper.make_node("Gather", ["means", "last two"], ["growth"], axis=1),
        helper.make_node("Mul", ["shift", "pixels"], ["shifted"]),
        helper.make_node("Add", ["shifted", "centres"], ["centre"]),
        helper.make_node("Mul", ["growth", "pixels"], ["grown"]),
        helper.make_node("Add", ["grown", "pixels"], ["size"]),
    ]
    behind_cpu = [helper.make_node("Concat", ["centre", "size", "classes"], ["output0"], axis=1)]
    behind_chip = [
        helper.make_node("Div", ["size", "two"], ["half"]),
        helper.make_node("Sub", ["centre", "half"], ["low"]),
        helper.make_node("Add", ["centre", "half"], ["high"]),
        helper.make_node("Concat", ["low", "high"], ["corners"], axis=1),
        helper.make_node("Gather", ["corners", "y first"], ["ordered"], axis=1),
        helper.make_node("Div", ["ordered", "side"], ["relative"]),
        helper.make_node("Transpose", ["relative"], ["boxes"], perm=[0, 2, 1]),
        helper.make_node("Transpose", ["classes"], ["scores"], perm=[0, 2, 1]),
    ]
    nodes = [*before, *seen, *behind_chip] if on_chip else [*seen, *behind_cpu]
    given = (TensorProto.UINT8, [1, SIDE, SIDE, 3]) if on_chip else (TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    outputs = {"boxes": [1, CELLS, 4], "scores": [1, CELLS, 3]} if on_chip else {"output0": [1, 7, CELLS]}
    constants = {
        "levels": np.array([255], np.float32),
        "flat": np.array([1, 3, CELLS]),
        "sharpness": np.array([30], np.float32),
        "first two": np.array([0, 1]),
        "last two": np.array([1, 2]),
        "pixels": np.array([60], np.float32),
        "centres": centres,
        "two": np.array([2], np.float32),
        "y first": np.array([1, 0, 3, 2]),
        "side": np.array([SIDE], np.float32),
    }
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("images" if on_chip else "planes", *given)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [_constant(name, value) for name, value in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def hef(by_score: bool, classes: int = 3) -> bytes:
    nms = Nms(classes, CELLS, "scores", "boxes", MINIMUM, OVERLAP, by_score)
    image = Stream("colours/input_layer1", (SIDE, SIDE, 3), "images")
    boxes = Stream("colours/nms_postprocess", (), nms=nms)
    return hailo.Hef("colours", (image,), (boxes,), onnx=colours(on_chip=True)).to_bytes()
