"""The stages of the digit reader's pipeline, from labels to a verdict; `deployment` is a file of its own.

Each is a function of what the stage before it handed over. Data lie in blobs, so a stage that runs twice finds what it
made. What Dagster adds (order, history, the gate) is in `primespark_assets`.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from primespark.core.manifests import GoldenInput
from primespark.errors import InvalidInputError
from primespark.inference.digits import digit_features, encode_digit_png
from primespark.inference.images import decode_image
from primespark.ml import digits_model
from primespark.ml.arrays import pack, unpack
from primespark.ml.datasets import CLASSES, LabelledFeatures, held_back_digits
from primespark.ml.outputs import (
    Evaluated,
    Featured,
    Ingested,
    Judged,
    Preprocessed,
    RejectedSample,
    Trained,
    Validated,
)

_MAX_PIXELS = 1_000_000
_MAX_REJECTED_NAMED = 100
_GREY_LEVELS = np.float32(16)


class Blobs(Protocol):
    """Immutable bytes by SHA-256."""

    def put(self, data: bytes) -> str:
        """Store `data`; its SHA-256."""
        ...

    def get(self, sha256: str) -> bytes:
        """The bytes of that SHA-256."""
        ...


class LabelledImage(Protocol):
    """What somebody says an image shows."""

    @property
    def sample(self) -> str:
        """Name of the image."""
        ...

    @property
    def label(self) -> str:
        """What it shows."""
        ...

    @property
    def image_png(self) -> bytes:
        """The image."""
        ...


class Champion(Protocol):
    """The version in service."""

    @property
    def version(self) -> int:
        """Its number."""
        ...

    @property
    def artifact(self) -> str:
        """SHA-256 of its ONNX file."""
        ...


def ingest(labels: Sequence[LabelledImage], blobs: Blobs) -> Ingested:
    """Freeze the labels as they are now.

    Raises:
        InvalidInputError: Code `no_labels`.
    """
    if not labels:
        raise InvalidInputError("no labels to learn from", remedy="POST /api/v1/labels", code="no_labels")
    return Ingested(labels=len(labels), dataset=blobs.put(_snapshot((r.sample, r.label, r.image_png) for r in labels)))


def validate(ingested: Ingested, blobs: Blobs) -> Validated:
    """Set aside what is no image or bears no digit's name; expect every class among the rest.

    Raises:
        InvalidInputError: Code `missing_classes`.
    """
    usable: list[tuple[str, str, bytes]] = []
    rejected: list[RejectedSample] = []
    for sample, label, image_png in _rows(blobs.get(ingested.dataset)):
        fault = _fault(label, image_png)
        if fault is None:
            usable.append((sample, label, image_png))
        else:
            rejected.append(RejectedSample(sample=sample, code=fault))
    counts = Counter(label for _, label, _ in usable)
    missing = [name for name in CLASSES if not counts[name]]
    if missing:
        raise InvalidInputError(
            f"no usable image of {', '.join(missing)} among {ingested.labels} labels",
            remedy="label at least one image of each digit",
            code="missing_classes",
        )
    return Validated(
        labels=ingested.labels,
        dataset=blobs.put(_snapshot(iter(usable))),
        usable=len(usable),
        rejected=len(rejected),
        rejected_samples=tuple(rejected[:_MAX_REJECTED_NAMED]),
        counts=dict(sorted(counts.items())),
    )


def preprocess(validated: Validated, blobs: Blobs) -> Preprocessed:
    """Images as pixels of 0 to 16, by the code that serves."""
    rows = list(_rows(blobs.get(validated.dataset)))
    # The serving code gives sixteenths; multiplying by a power of two is exact.
    pixels = np.stack([digit_features(image_png) for _, _, image_png in rows]) * _GREY_LEVELS
    labels = np.array([int(label) for _, label, _ in rows], dtype=np.int64)
    stored = blobs.put(pack(pixels=pixels.astype(np.float32), labels=labels))
    return Preprocessed(labels=validated.labels, pixels=stored, samples=len(rows))


def engineer_features(preprocessed: Preprocessed, blobs: Blobs, seed: int) -> Featured:
    """Model inputs without those that will judge the model.

    Raises:
        InvalidInputError: Code `missing_classes`: too little is left.
    """
    arrays = unpack(blobs.get(preprocessed.pixels))
    features = (arrays["pixels"] / _GREY_LEVELS).astype(np.float32)
    judges = {row.tobytes() for row in held_back_digits(seed).features}
    is_free = np.array([row.tobytes() not in judges for row in features])
    labels = arrays["labels"][is_free]
    if len(np.unique(labels)) < len(CLASSES):
        raise InvalidInputError(
            "without the images of the evaluation set a class is missing",
            remedy="label images that the evaluation set does not hold",
            code="missing_classes",
        )
    return Featured(
        labels=preprocessed.labels,
        features=blobs.put(pack(features=features[is_free], labels=labels)),
        samples=int(is_free.sum()),
        withheld=int((~is_free).sum()),
    )


def train(featured: Featured, blobs: Blobs) -> Trained:
    """The candidate."""
    arrays = unpack(blobs.get(featured.features))
    onnx = digits_model.train(LabelledFeatures(arrays["features"], arrays["labels"]))
    return Trained(labels=featured.labels, artifact=blobs.put(onnx), samples=featured.samples)


def evaluate(trained: Trained, champion: Champion | None, blobs: Blobs, seed: int) -> Evaluated:
    """Candidate and champion on the held-back digits, both as the ONNX files that serve."""
    held_back = held_back_digits(seed)
    onnx = blobs.get(trained.artifact)
    is_right = digits_model.predict(onnx, held_back.features) == held_back.labels
    return Evaluated(
        labels=trained.labels,
        artifact=trained.artifact,
        held_back=len(held_back.labels),
        accuracy=float(is_right.mean()),
        champion_version=champion.version if champion else None,
        champion_accuracy=digits_model.accuracy(blobs.get(champion.artifact), held_back) if champion else None,
        is_champion=champion is not None and champion.artifact == trained.artifact,
        golden=_golden(held_back, int(np.argmax(is_right))),
    )


def judge(evaluated: Evaluated, minimum_accuracy: float) -> Judged:
    """A candidate passes if it reaches the minimum and beats the champion, or is the champion trained again."""
    accuracy, champion = evaluated.accuracy, evaluated.champion_accuracy
    if evaluated.is_champion:
        passed, reason = True, "it is the champion"
    elif accuracy < minimum_accuracy:
        passed, reason = False, f"accuracy {accuracy:.4f} is below the minimum of {minimum_accuracy:.4f}"
    elif champion is not None and accuracy <= champion:
        passed, reason = False, f"accuracy {accuracy:.4f} does not beat the champion's {champion:.4f}"
    else:
        passed, reason = True, "it is the first" if champion is None else "it beats the champion"
    return Judged(
        labels=evaluated.labels, artifact=evaluated.artifact, passed=passed, reason=reason, accuracy=accuracy,
        champion_accuracy=champion,
    )  # fmt: skip


def _fault(label: str, image_png: bytes) -> str | None:
    if label not in CLASSES:
        return "unknown_class"
    try:
        decode_image(image_png, _MAX_PIXELS)
    except InvalidInputError as error:
        return error.code
    return None


def _golden(data: LabelledFeatures, index: int) -> GoldenInput:
    png = encode_digit_png((data.features[index] * _GREY_LEVELS).reshape(8, 8))
    return GoldenInput(image_png_base64=base64.b64encode(png).decode(), label=CLASSES[data.labels[index]])


def _snapshot(rows: Iterator[tuple[str, str, bytes]]) -> bytes:
    samples, labels, images = zip(*rows, strict=True)
    return pack(
        samples=np.array(samples, dtype=np.str_),
        labels=np.array(labels, dtype=np.str_),
        image_bytes=np.frombuffer(b"".join(images), dtype=np.uint8),
        image_ends=np.cumsum([len(image) for image in images], dtype=np.int64),
    )


def _rows(snapshot: bytes) -> Iterator[tuple[str, str, bytes]]:
    arrays = unpack(snapshot)
    start = 0
    for sample, label, end in zip(arrays["samples"], arrays["labels"], arrays["image_ends"], strict=True):
        yield str(sample), str(label), arrays["image_bytes"][start:end].tobytes()
        start = end
