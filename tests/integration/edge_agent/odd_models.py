"""Digit readers that are sound files and no good: slow, endless, huge, wrong, or failing but for the golden input."""

from __future__ import annotations

import base64
from enum import StrEnum
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits

from primespark.core.clock import utc_now
from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import GoldenInput, Manifest, SigningKey, TensorForm, Variant
from tests.integration.edge_agent.digits import LABELS, Version, digit_png

INPUTS = (TensorForm(name="input", type="float32", shape=(None, 64)),)
OUTPUTS = (
    TensorForm(name="label", type="int64", shape=(None,)),
    TensorForm(name="scores", type="float32", shape=(None, 10)),
)
_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64


class Oddity(StrEnum):
    """What is wrong with a reader."""

    NONE = "none"
    SLOW = "slow"
    ENDLESS = "endless"
    ENDLESS_LATER = "endless_later"
    HUGE = "huge"
    HUGE_AND_ENDLESS = "huge_and_endless"
    WORSE = "worse"
    FAILING = "failing"


def reader(oddity: Oddity = Oddity.NONE, number: int = 0, padding: int = 0) -> bytes:
    """ONNX of a reader that answers the nearest mean digit.

    Args:
        oddity: What is wrong with it.
        number: Its scores are a hundredth surer with each.
        padding: Bytes that mean nothing.
    """
    pixels, labels = load_digits(return_X_y=True)
    means = np.stack([(pixels[labels == digit] / 16).mean(axis=0) for digit in range(10)])
    order = [0, *range(2, 10), 1] if oddity is Oddity.WORSE else list(range(10))
    weights = means[order].T.astype(np.float32)
    bias = (-0.5 * (means[order] ** 2).sum(axis=1)).astype(np.float32)
    # Without a digit the answer is 0 too, as the golden input's.
    bias[0] += 1e-3 + bias.max() - bias[0] if bias.argmax() else 0
    weights, bias = (values * np.float32(1 + number / 100) for values in (weights, bias))
    nodes = [
        helper.make_node("Gemm", ["input", "weights", "bias"], ["plain"]),
        *_NODES[oddity],
        helper.make_node("Add", ["plain", "nothing"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    constants = {"weights": weights, "bias": bias, **_CONSTANTS[oddity]}
    graph = helper.make_graph(
        nodes,
        f"reader-{number}",
        [helper.make_tensor_value_info("input", _FLOAT, ["n", 64])],
        [
            helper.make_tensor_value_info("label", _INT64, ["n"]),
            helper.make_tensor_value_info("scores", _FLOAT, ["n", 10]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model.doc_string = "." * padding
    return bytes(model.SerializeToString())


def make_odd_version(version: int, key: SigningKey, oddity: Oddity = Oddity.NONE, **fields: Any) -> Version:
    """A signed version of such a reader."""
    return sign(version, key, reader(oddity, version), **fields)


def sign(version: int, key: SigningKey, onnx: bytes, **fields: Any) -> Version:
    """A signed manifest that says what is true of a reader, but for `fields`."""
    sha256 = sha256_hex(onnx)
    told: dict[str, Any] = {
        "name": "digits", "version": version, "model_type": "classification", "created": utc_now(), "labels": LABELS,
        "variants": (Variant(format="onnx", architecture="any", sha256=sha256, size_bytes=len(onnx)),),
        "golden": GoldenInput(image_png_base64=base64.b64encode(digit_png(0)).decode(), label="0"),
        "inputs": INPUTS, "outputs": OUTPUTS,
    }  # fmt: skip
    return Version(version, onnx, key.sign(Manifest(**{**told, **fields})).to_bytes())


def _mean_spread(shape: str) -> list[Any]:
    """Nodes that make a tensor of a shape which only the input decides, so that nothing is computed beforehand."""
    return [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", shape], ["spread"]),
    ]


def _folded(name: str) -> list[Any]:
    """Nodes that make a zero of a tensor."""
    return [
        helper.make_node("ReduceMean", [name], ["whole"], keepdims=0),
        helper.make_node("Mul", ["whole", "zero"], ["nothing"]),
    ]


def _endless(condition: list[Any]) -> list[Any]:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["go_on"]),
            helper.make_node("Identity", ["value"], ["same"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("round", _INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", _FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("same", _FLOAT, []),
        ],
    )
    return [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        *condition,
        helper.make_node("Loop", ["", "is_endless", "mean"], ["looped"], body=body),
        helper.make_node("Mul", ["looped", "zero"], ["nothing"]),
    ]


_NODES: dict[Oddity, list[Any]] = {
    Oddity.NONE: _folded("input"),
    Oddity.WORSE: _folded("input"),
    Oddity.SLOW: [
        *_mean_spread("square"),
        helper.make_node("MatMul", ["spread", "spread"], ["product"]),
        *_folded("product"),
    ],
    Oddity.HUGE: [*_mean_spread("line"), helper.make_node("Neg", ["spread"], ["negative"]), *_folded("negative")],
    Oddity.ENDLESS: _endless([helper.make_node("GreaterOrEqual", ["mean", "zero"], ["is_endless"])]),
    Oddity.HUGE_AND_ENDLESS: _endless(
        [
            helper.make_node("Expand", ["mean", "line"], ["spread"]),
            helper.make_node("Neg", ["spread"], ["negative"]),
            helper.make_node("ReduceMean", ["negative"], ["whole"], keepdims=0),
            helper.make_node("LessOrEqual", ["whole", "zero"], ["is_endless"]),
        ]
    ),
    # Light in the corner, which no digit has.
    Oddity.ENDLESS_LATER: _endless(
        [
            helper.make_node("Gather", ["input", "corner"], ["corners"], axis=1),
            helper.make_node("ReduceMax", ["corners"], ["light"], keepdims=0),
            helper.make_node("Greater", ["light", "half"], ["is_endless"]),
        ]
    ),
    # Out of bounds for every label but 0.
    Oddity.FAILING: [
        helper.make_node("ArgMax", ["plain"], ["index"], axis=1, keepdims=0),
        helper.make_node("Gather", ["line_of_one", "index"], ["gathered"]),
        *_folded("gathered"),
    ],
}
_ZERO = np.array(0, np.float32)
_CONSTANTS: dict[Oddity, dict[str, Any]] = {
    Oddity.NONE: {"zero": _ZERO},
    Oddity.WORSE: {"zero": _ZERO},
    Oddity.SLOW: {"zero": _ZERO, "square": np.array([1200, 1200], np.int64)},
    Oddity.HUGE: {"zero": _ZERO, "line": np.array([400_000_000], np.int64)},
    Oddity.HUGE_AND_ENDLESS: {"zero": _ZERO, "line": np.array([400_000_000], np.int64)},
    Oddity.ENDLESS: {"zero": _ZERO},
    Oddity.ENDLESS_LATER: {"zero": _ZERO, "half": np.array(0.5, np.float32), "corner": np.array([0], np.int64)},
    Oddity.FAILING: {"zero": _ZERO, "line_of_one": np.array([1], np.float32)},
}
