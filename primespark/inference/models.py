"""Models as they are served: a loaded engine with what stands before and behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

from numpy.typing import NDArray

from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import Manifest
from primespark.errors import IntegrityError
from primespark.inference import catalog
from primespark.inference.batching_engine import NO_BATCHES, Batching
from primespark.inference.catalog import ModelType
from primespark.inference.classification import DigitReader, ImageClassifier
from primespark.inference.detection import SsdDetector
from primespark.inference.engine import InferenceEngine, Tensor
from primespark.inference.input_arrays import check_audio, check_image, check_table
from primespark.inference.onnx_engine import OnnxEngine
from primespark.inference.pose import MoveNet
from primespark.inference.predictions import Prediction
from primespark.inference.segmentation import SelfieSegmenter
from primespark.inference.speech import SpeechDetector
from primespark.inference.tabular import TableClassifier, TableRegressor
from primespark.inference.yolo import YoloDetector
from primespark.inference.yolo_pose import YoloPose

DETECTOR = "coco-ssd"
BUNDLED_VERSION = 1

Answer = Callable[[NDArray[Any]], Sequence[Prediction]]


class InputKind(StrEnum):
    """What a model takes."""

    IMAGE = "image"
    AUDIO = "audio"
    TABLE = "table"


INPUT_OF = {
    ModelType.OBJECT_DETECTION: InputKind.IMAGE,
    ModelType.CLASSIFICATION: InputKind.IMAGE,
    ModelType.POSE: InputKind.IMAGE,
    ModelType.SEGMENTATION: InputKind.IMAGE,
    ModelType.AUDIO: InputKind.AUDIO,
    ModelType.TABULAR: InputKind.TABLE,
}
_CHECKS = {InputKind.IMAGE: check_image, InputKind.AUDIO: check_audio, InputKind.TABLE: check_table}


class Model(Protocol):
    """What answers under a name: one variant, or several of which one answers; safe to share between threads."""

    @property
    def name(self) -> str:
        """Its own."""

    @property
    def model_type(self) -> ModelType:
        """Which shape its predictions have."""

    @property
    def input_kind(self) -> InputKind:
        """What it takes."""

    @property
    def current(self) -> ServedModel:
        """The variant that would answer now."""

    @property
    def fault(self) -> str | None:
        """Code of why another variant answers than should; None while all is well."""

    @property
    def away(self) -> ServedModel | None:
        """The variant that should answer and is expected back; None while all is well."""

    def answered(self, given: NDArray[Any]) -> Answered:
        """Predictions for an input, see `ServedModel.predict`, and the variant that made them."""

    def computed(self, asked: RawInputs) -> Computed:
        """Outputs of the network, and the variant that gave them: the one asked, or one whose engine is alike.

        Raises:
            UnavailableError: As `InferenceEngine.run`; the variant asked is away, and no other is like it.
        """

    def retire(self) -> None:
        """Give up what others wait for, once another took its place; whoever still asks is answered."""

    def close(self) -> None:
        """Release it; predictions under way end as if it were open."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model answered, and by which variant."""

    predictions: list[Prediction]
    by: ServedModel


@dataclass(frozen=True, slots=True, eq=False)
class RawInputs:
    """What a model's network is asked, with nothing before or behind it.

    Attributes:
        arrays: By name of the input, as the engine of `variant` takes them.
        variant: The one asked, `current` or `away` of the model.
        is_version_named: Another version may not answer.
    """

    arrays: Mapping[str, Tensor]
    variant: ServedModel
    is_version_named: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Computed:
    """What a network gave, in the order of its outputs, and by which variant."""

    outputs: list[NDArray[Any]]
    by: ServedModel


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One variant of one version of a model, ready to answer; safe to share between threads.

    Attributes:
        digest: SHA-256 of the model's file.
        labels: Names of the classes it answers, ordered by class id; of poses, of the points.
        answer: From an input to predictions.
    """

    name: str
    model_type: ModelType
    version: int
    digest: str
    labels: tuple[str, ...]
    engine: InferenceEngine
    answer: Answer

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.engine.device

    @property
    def input_kind(self) -> InputKind:
        """What it takes."""
        return INPUT_OF[self.model_type]

    @property
    def current(self) -> ServedModel:
        """Itself."""
        return self

    @property
    def fault(self) -> str | None:
        """None: there is no other variant."""
        return None

    @property
    def away(self) -> ServedModel | None:
        """None: there is no other variant."""
        return None

    def predict(self, given: NDArray[Any]) -> list[Prediction]:
        """Predictions in the shape of the model's type.

        Args:
            given: An image, uint8 [height, width, 3] RGB; a recording, float32 [samples] in -1..1 at 16 kHz; or a
                table, float32 [rows, features].

        Raises:
            InvalidInputError: Code `bad_image_array`, `bad_audio_array` or `bad_table`: not such an array.
        """
        _CHECKS[self.input_kind](given)
        return list(self.answer(given))

    def answered(self, given: NDArray[Any]) -> Answered:
        """As `predict`, with this variant's name on it."""
        return Answered(self.predict(given), self)

    def computed(self, asked: RawInputs) -> Computed:
        """The engine's outputs, with this variant's name on them; it must be like the one asked."""
        return Computed(self.engine.run(asked.arrays), self)

    def retire(self) -> None:
        """Nothing: its memory is free when nobody asks it any more."""

    def close(self) -> None:
        """Release the engine; predictions under way end as if it were open."""
        self.engine.close()


def load_bundled(name: str, threads: int, minimum_score: float, batching: Batching = NO_BATCHES) -> ServedModel:
    """A bundled model, its digest verified.

    Args:
        name: As in `catalog.BUNDLED`.
        threads: One run may use.
        minimum_score: Objects below it are not answered.
        batching: Of runs that come at once, where the model takes any number of inputs.

    Raises:
        NotFoundError: No such model.
        IntegrityError: The file is not the pinned one.
    """
    model = catalog.find(name)
    engine = batching.around(OnnxEngine(catalog.read_bytes(model), threads))
    labels, answer = _BUNDLED[model.model_type](engine, minimum_score)
    return ServedModel(model.name, model.model_type, BUNDLED_VERSION, model.sha256, labels, engine, answer)


def load_model(
    manifest: Manifest, onnx: bytes, threads: int, minimum_score: float, batching: Batching = NO_BATCHES
) -> ServedModel:
    """The model of a manifest that the caller has verified.

    Raises:
        IntegrityError: Code `wrong_artifact`: `onnx` is no ONNX variant of the manifest; code `bad_model`: nothing here
            reads a model of its type and form; code `external_data`: it names other files.
    """
    digest = sha256_hex(onnx)
    if not any(variant.format == "onnx" and variant.sha256 == digest for variant in manifest.variants):
        raise IntegrityError(
            f"file {digest[:16]}… is no ONNX variant of {manifest.name} {manifest.version}", code="wrong_artifact"
        )
    build = _DEPLOYED.get(manifest.model_type)
    if build is None:
        raise IntegrityError(
            f"{manifest.name} is of type {manifest.model_type}",
            remedy=f"there is {', '.join(_DEPLOYED)}",
            code="bad_model",
        )
    engine = batching.around(OnnxEngine(onnx, threads))
    answer = build(engine, manifest.labels, minimum_score)
    model_type = ModelType(manifest.model_type)
    return ServedModel(manifest.name, model_type, manifest.version, digest, manifest.labels, engine, answer)


def _bundled_detector(engine: InferenceEngine, minimum_score: float) -> tuple[tuple[str, ...], Answer]:
    labels = catalog.read_labels("coco90.txt")
    return tuple(labels[class_id] for class_id in sorted(labels)), SsdDetector(engine, labels, minimum_score)


def _bundled_classifier(engine: InferenceEngine, _: float) -> tuple[tuple[str, ...], Answer]:
    # A line has all words for one class; the first is its name.
    labels = tuple(line.split(",")[0] for line in catalog.read_lines("imagenet1k.txt"))
    return labels, ImageClassifier(engine, labels)


def _bundled_pose(engine: InferenceEngine, _: float) -> tuple[tuple[str, ...], Answer]:
    names = catalog.read_lines("coco17_keypoints.txt")
    return names, MoveNet(engine, names)


def _bundled_segmenter(engine: InferenceEngine, _: float) -> tuple[tuple[str, ...], Answer]:
    return ("person",), SelfieSegmenter(engine)


def _bundled_speech_detector(engine: InferenceEngine, _: float) -> tuple[tuple[str, ...], Answer]:
    return ("speech",), SpeechDetector(engine)


def _deployed_classifier(engine: InferenceEngine, labels: tuple[str, ...], _: float) -> Answer:
    # Photographs have three channels and a place; a scanned digit is a row.
    if [len(shape) for shape in engine.input_shapes] == [4]:
        return ImageClassifier(engine, labels)
    return DigitReader(engine, labels)


def _deployed_detector(engine: InferenceEngine, labels: tuple[str, ...], minimum_score: float) -> Answer:
    return YoloDetector(engine, labels, minimum_score)


def _deployed_pose(engine: InferenceEngine, labels: tuple[str, ...], minimum_score: float) -> Answer:
    return YoloPose(engine, labels, minimum_score)


def _deployed_table_model(engine: InferenceEngine, labels: tuple[str, ...], _: float) -> Answer:
    return TableClassifier(engine, labels) if labels else TableRegressor(engine)


_BUNDLED: dict[str, Callable[[InferenceEngine, float], tuple[tuple[str, ...], Answer]]] = {
    ModelType.OBJECT_DETECTION: _bundled_detector,
    ModelType.CLASSIFICATION: _bundled_classifier,
    ModelType.POSE: _bundled_pose,
    ModelType.SEGMENTATION: _bundled_segmenter,
    ModelType.AUDIO: _bundled_speech_detector,
}
_DEPLOYED: dict[str, Callable[[InferenceEngine, tuple[str, ...], float], Answer]] = {
    ModelType.CLASSIFICATION: _deployed_classifier,
    ModelType.OBJECT_DETECTION: _deployed_detector,
    ModelType.POSE: _deployed_pose,
    ModelType.TABULAR: _deployed_table_model,
}
