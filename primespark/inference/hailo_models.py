"""Models whose file is a HEF, as they are served."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from primespark.core.identifiers import sha256_hex
from primespark.errors import ConfigurationError, IntegrityError
from primespark.inference import catalog
from primespark.inference.catalog import ModelType
from primespark.inference.hailo_classification import HailoClassifier
from primespark.inference.hailo_detection import HailoDetector
from primespark.inference.hailo_device import HailoDevice
from primespark.inference.hailo_engine import HailoInferenceEngine
from primespark.inference.hailo_pose import HailoPose
from primespark.inference.models import Answer, ServedModel

_MAX_LABELS_BYTES = 1024 * 1024


def _classifier(engine: HailoInferenceEngine, labels: tuple[str, ...], _: float) -> Answer:
    return HailoClassifier(engine, labels)


READERS: dict[ModelType, Callable[[HailoInferenceEngine, tuple[str, ...], float], Answer]] = {
    ModelType.OBJECT_DETECTION: HailoDetector,
    ModelType.CLASSIFICATION: _classifier,
    ModelType.POSE: HailoPose,
}


def load_hef(
    path: Path,
    device: HailoDevice,
    *,
    name: str,
    model_type: ModelType,
    version: int,
    labels: tuple[str, ...],
    minimum_score: float,
    timeout_s: float,
) -> ServedModel:
    """A model on the accelerator.

    Args:
        path: Of the HEF; a detector's ends in non-maximum suppression.
        device: The process's accelerator.
        name: Of the model.
        model_type: One of `READERS`.
        version: Of the model.
        labels: Name of each class id; of poses, of each point.
        minimum_score: Objects and bodies below it are not answered.
        timeout_s: Seconds a run may take.

    Raises:
        PrimeSparkError: As `HailoInferenceEngine`, and the type's reader.
    """
    engine = HailoInferenceEngine(path, device, timeout_s=timeout_s)
    try:
        answer = READERS[model_type](engine, labels, minimum_score)
        digest = sha256_hex(path.read_bytes())
    except (IntegrityError, OSError):
        engine.close()
        raise
    return ServedModel(name, model_type, version, digest, labels, engine, answer)


def read_detector_labels(file: Path | None) -> tuple[str, ...]:
    """Names of a detector's classes by class id: the lines of a file, without one the 80 of COCO.

    Raises:
        ConfigurationError: Code `bad_labels`: no such file, or none of text.
    """
    if file is None:
        # The bundled detector counts 90, of which ten were never used; models of YOLO's line count those that were.
        names = catalog.read_labels("coco90.txt")
        return tuple(names[class_id] for class_id in sorted(names))
    try:
        with file.open(encoding="utf-8") as lines:
            return tuple(line.strip() for line in lines.read(_MAX_LABELS_BYTES).splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the labels {file} cannot be read: {error}",
            remedy="give a text file with a label a line",
            code="bad_labels",
        ) from None
