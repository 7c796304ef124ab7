"""The bundled classifier of photographs as a HEF for the double: the same network, its normalisation compiled in."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from primespark.inference import catalog
from tests.doubles.hailo import Hef, Stream

SIDE, CLASSES = 224, 1000
LABELS = tuple(line.split(",")[0] for line in catalog.read_lines("imagenet1k.txt"))


def classifier() -> bytes:
    """The network for the processor."""
    return catalog.read_bytes(catalog.find("efficientnet-lite0"))


@cache
def hef(ends_in_softmax: bool) -> bytes:
    """The network for the chip, its answers in 256 steps."""
    model = onnx.load_from_string(classifier())
    graph = model.graph
    given, logits = graph.input[0].name, graph.output[0].name
    before = [
        helper.make_node("Cast", ["image"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["levels", "mean"], ["centred"]),
        helper.make_node("Div", ["centred", "scale"], ["normal"]),
        helper.make_node("Transpose", ["normal"], [given], perm=[0, 3, 1, 2]),
    ]
    behind = [helper.make_node("Softmax", [logits], ["shares"], axis=1)] if ends_in_softmax else []
    nodes = [*before, *graph.node, *behind]
    output = "shares" if ends_in_softmax else logits
    constants = [
        numpy_helper.from_array(np.array([value], np.float32), name) for name, value in (("mean", 127), ("scale", 128))
    ]
    whole = helper.make_graph(
        nodes,
        "photographs",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, [1, SIDE, SIDE, 3])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, CLASSES])],
        [*graph.initializer, *constants],
    )
    wrapped = helper.make_model(whole, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(wrapped)
    scale, zero_point = (1 / 255, 0.0) if ends_in_softmax else (0.1, 100.0)
    image = Stream("photographs/input_layer1", (SIDE, SIDE, 3), "image")
    answer = Stream("photographs/fc1", (CLASSES,), output, scale=scale, zero_point=zero_point)
    return Hef("photographs", (image,), (answer,), onnx=wrapped.SerializeToString()).to_bytes()
