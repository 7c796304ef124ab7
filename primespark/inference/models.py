"""Models as they are served: a loaded engine with what stands before and behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import Manifest
from primespark.errors import IntegrityError, InvalidInputError, NotFoundError
from primespark.inference import catalog
from primespark.inference.catalog import ModelType
from primespark.inference.classification import DigitReader
from primespark.inference.detection import SsdDetector
from primespark.inference.engine import InferenceEngine
from primespark.inference.onnx_engine import OnnxEngine

DETECTOR = "coco-ssd"
_BUNDLED_VERSION = 1
_DETECTOR_LABELS = "coco90.txt"
_CHANNELS = 3

Prediction = dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One version of a model, ready to answer; safe to share between threads.

    Attributes:
        digest: SHA-256 of the model's file.
        labels: Names of the classes it answers, ordered by class id.
        answer: From an image to predictions.
    """

    name: str
    model_type: ModelType
    version: int
    digest: str
    labels: tuple[str, ...]
    engine: InferenceEngine
    answer: Callable[[NDArray[np.uint8]], list[Prediction]]

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.engine.device

    def predict(self, image: NDArray[np.uint8]) -> list[Prediction]:
        """Predictions for an image, uint8 [height, width, 3] RGB, in the shape of the model's type.

        Raises:
            InvalidInputError: Code `bad_image_array`: not such an array.
        """
        if image.dtype != np.uint8 or image.ndim != _CHANNELS or image.shape[2] != _CHANNELS or not image.size:
            raise InvalidInputError(
                f"an image is uint8 [height, width, 3], not {image.dtype} {list(image.shape)}", code="bad_image_array"
            )
        return self.answer(image)

    def close(self) -> None:
        """Release the engine; predictions under way end as if it were open."""
        self.engine.close()


def load_bundled(name: str, threads: int, minimum_score: float) -> ServedModel:
    """A bundled model, its digest verified.

    Raises:
        NotFoundError: No such model; code `not_served`: it ships, but nothing here reads its answers.
        IntegrityError: The file is not the pinned one.
    """
    model = catalog.find(name)
    if model.name != DETECTOR:
        raise NotFoundError(
            f"model {model.name} ships as a file only", remedy=f"{DETECTOR} is served", code="not_served"
        )
    labels = catalog.read_labels(_DETECTOR_LABELS)
    engine = OnnxEngine(catalog.read_bytes(model), threads)
    detector = SsdDetector(engine, labels, minimum_score)
    names = tuple(labels[class_id] for class_id in sorted(labels))
    return ServedModel(model.name, model.model_type, _BUNDLED_VERSION, model.sha256, names, engine, detector)


def load_classifier(manifest: Manifest, onnx: bytes, threads: int) -> ServedModel:
    """The digit reader of a manifest that the caller has verified.

    Raises:
        IntegrityError: Code `wrong_artifact`: `onnx` is no ONNX variant of the manifest; code `bad_model`: it is not a
            classifier of the manifest's labels; code `external_data`: it names other files.
    """
    digest = sha256_hex(onnx)
    if not any(variant.format == "onnx" and variant.sha256 == digest for variant in manifest.variants):
        raise IntegrityError(
            f"file {digest[:16]}… is no ONNX variant of {manifest.name} {manifest.version}", code="wrong_artifact"
        )
    if manifest.model_type != ModelType.CLASSIFICATION:
        raise IntegrityError(f"{manifest.name} is of type {manifest.model_type}, not classification", code="bad_model")
    engine = OnnxEngine(onnx, threads)
    reader = DigitReader(engine, manifest.labels)
    return ServedModel(
        manifest.name, ModelType.CLASSIFICATION, manifest.version, digest, manifest.labels, engine, reader
    )
