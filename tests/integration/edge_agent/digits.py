"""A small digit reader, trained and signed as the cloud does it."""

from __future__ import annotations

import base64
import functools
import warnings
from dataclasses import dataclass
from typing import Any

from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.svm import SVC

from primespark.core.clock import utc_now
from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import GoldenInput, Manifest, SigningKey, Variant
from primespark.inference.digits import encode_digit_png
from tests.integration.edge_agent.gate import GateOracle

LABELS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the digit reader, its blobs and the twin's pointer to it."""

    version: int
    onnx: bytes
    manifest: bytes

    @property
    def pointer(self) -> dict[str, Any]:
        return {
            "version": self.version, "manifest": sha256_hex(self.manifest), "artifacts": [sha256_hex(self.onnx)],
        }  # fmt: skip

    def leave_in(self, oracle: GateOracle) -> None:
        for blob in (self.onnx, self.manifest):
            oracle.blobs[sha256_hex(blob)] = blob


@functools.cache
def train(count: int) -> bytes:
    """ONNX of a reader trained from the first `count` digits."""
    images, labels = load_digits(return_X_y=True)
    model = SVC(C=10).fit(images[:count] / 16, labels[:count])
    example = images[:1].astype("float32")
    with warnings.catch_warnings():
        # scikit-learn 1.9 warns of attributes that skl2onnx reads.
        warnings.simplefilter("ignore", FutureWarning)
        onnx = to_onnx(model, example, options={id(model): {"zipmap": False}}, name="digits")
    onnx.graph.input[0].name = "input"
    for node in onnx.graph.node:
        node.input[:] = ["input" if name == "X" else name for name in node.input]
    return bytes(onnx.SerializeToString())


def make_version(
    version: int, key: SigningKey, *, count: int = 200, golden: str | None = None, name: str = "digits"
) -> Version:
    """A signed version; `golden` is the label its golden input must get, the true one by default."""
    onnx = train(count)
    png = base64.b64encode(digit_png(0)).decode()
    manifest = Manifest(
        name=name, version=version, model_type="classification", created=utc_now(), labels=LABELS,
        variants=(Variant(format="onnx", architecture="any", sha256=sha256_hex(onnx), size_bytes=len(onnx)),),
        golden=GoldenInput(image_png_base64=png, label=golden or str(load_digits().target[0])),
    )  # fmt: skip
    return Version(version, onnx, key.sign(manifest).to_bytes())


def digit_png(index: int) -> bytes:
    """The camera's frame of a scanned digit."""
    return encode_digit_png(load_digits().images[index])
