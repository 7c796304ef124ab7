"""The digit reader as a model: trained by scikit-learn, served as ONNX."""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError
from primespark.ml.datasets import LabelledFeatures

MODEL = "digits"
MODEL_TYPE = "classification"
# Devices with an ONNX Runtime of two years ago read these; the converter's newest may be younger than their runtime.
_TARGET_OPSET = {"": 17, "ai.onnx.ml": 3}
_REGULARISATION = 10.0


def train(data: LabelledFeatures) -> bytes:
    """A support vector classifier as ONNX; the same data give the same bytes.

    Raises:
        IntegrityError: Code `conversion_differs`: the ONNX graph reads its own training data otherwise.
    """
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType
    from sklearn.svm import SVC

    classifier = SVC(C=_REGULARISATION).fit(data.features, data.labels)
    with warnings.catch_warnings():
        # skl2onnx 1.20 asks for what scikit-learn 1.9 is about to drop, and does without it.
        warnings.filterwarnings("ignore", category=FutureWarning, module="sklearn")
        graph = convert_sklearn(
            classifier,
            name=MODEL,
            initial_types=[("input", FloatTensorType([None, data.features.shape[1]]))],
            options={id(classifier): {"zipmap": False}},
            target_opset=_TARGET_OPSET,
        )
    # The converter keeps them in a set, whose order changes from process to process, and with it the digest.
    graph.opset_import.sort(key=lambda entry: entry.domain)
    onnx: bytes = graph.SerializeToString(deterministic=True)
    differing = int((predict(onnx, data.features) != classifier.predict(data.features)).sum())
    if differing:
        raise IntegrityError(
            f"the ONNX graph reads {differing} of {len(data.labels)} samples otherwise",
            remedy="see the versions of skl2onnx and onnxruntime",
            code="conversion_differs",
        )
    return onnx


def predict(onnx: bytes, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """What the model reads in each row."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
    (labels,) = session.run(["label"], {"input": features})
    return np.asarray(labels, dtype=np.int64)


def accuracy(onnx: bytes, data: LabelledFeatures) -> float:
    """Share of rows read rightly."""
    return float((predict(onnx, data.features) == data.labels).mean())
