"""What people say that kept hard examples show: each word becomes `labels` facts, once, as far as images may leave."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from edge_agent.capture.geometry import Box
from edge_agent.capture.picture_store import PictureStore
from edge_agent.capture.pictures import MAX_SIDE, Pixels, encode_png
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.capture_settings import ImagePolicy
from primespark.errors import ConflictError, InvalidInputError
from primespark.inference.images import decode_image
from primespark.sync.records import DataClass

# What the gate takes of an image in a label.
MAX_IMAGE_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class LabelledBox:
    """What a part of a picture shows; the box is in the picture's pixels."""

    label: str
    box: Box


@dataclass(frozen=True, slots=True)
class Labelling:
    """What a picture shows: as a whole, or in parts, or both.

    Attributes:
        dataset: Which the labels belong to.
        label: Of the whole picture.
        boxes: Its parts, in an order that later revisions keep.
    """

    dataset: str
    label: str | None = None
    boxes: Sequence[LabelledBox] = ()


@dataclass(frozen=True, slots=True)
class Labelled:
    """What became of a labelling.

    Attributes:
        revision: Counts the labellings of the example in this dataset, from 1.
        samples: Names of the labels in the dataset.
        is_new: Whether this is another labelling than the last one.
    """

    revision: int
    samples: list[str]
    is_new: bool


class ExampleLabels:
    """Labels of the hard examples of a device.

    A labelling is told from the last one of its example and dataset by its content: the same again is no new revision,
    whatever was killed between. Each part is a sample of its own, whose newest label stands in the cloud; so a revision
    names every sample that an earlier one named.

    Args:
        examples: Where their pictures are.
        queue: Takes the labels, and remembers which it took.
        images: What of an image may leave the device.
    """

    def __init__(self, examples: PictureStore, queue: OfflineQueue, images: ImagePolicy) -> None:
        self._examples = examples
        self._queue = queue
        self._images = images
        # Between reading the last revision and writing the next there is no other.
        self._lock = asyncio.Lock()

    async def revisions(self, example: str) -> dict[str, int]:
        """The last revision by dataset; empty for an example that nobody has labelled."""
        found = [_Key.parse(key) for key in await self._queue.remembered(f"example:{example}:")]
        return {key.dataset: key.revision for key in sorted(found, key=lambda key: key.revision)}

    async def label(self, example: str, given: Labelling) -> Labelled:
        """Enqueue all of a labelling or nothing.

        Args:
            example: Id of the kept picture.
            given: At least one label.

        Raises:
            NotFoundError: No such example, or no longer.
            ConflictError: Code `images_stay`: the policy keeps what the label is about on the device; code
                `label_missing`: an earlier revision named a sample that this one does not.
            InvalidInputError: Code `bad_box`: not in the picture.
            OverloadedError: Code `queue_full`.
        """
        data = await asyncio.to_thread(self._examples.read, example)
        self._check_policy(given)
        async with self._lock:
            known = [_Key.parse(key) for key in await self._queue.remembered(f"example:{example}:{given.dataset}:")]
            revision = max((key.revision for key in known), default=0)
            digest, samples = _digest(given), _samples(given)
            names = [f"{example}{sample}" for sample in samples]
            if any(key.revision == revision and key.digest == digest for key in known):
                return Labelled(revision, names, is_new=False)
            if missing := sorted({key.sample for key in known} - set(samples)):
                raise ConflictError(
                    f"an earlier labelling named {', '.join(example + sample for sample in missing[:5])}",
                    remedy="give its boxes in their order, and its label, with what they show instead",
                    code="label_missing",
                )
            facts = await asyncio.to_thread(_facts, example, given, data)
            keys = [_Key(example, given.dataset, revision + 1, digest, sample) for sample in samples]
            await self._queue.enqueue(facts, once=[str(key) for key in keys])
            return Labelled(revision + 1, names, is_new=True)

    def _check_policy(self, given: Labelling) -> None:
        if self._images == "off":
            raise ConflictError(
                "a label travels with what it is about, and images stay on this device",
                remedy="set edge.capture.images to crops or full, or copy the picture to the labelled folder",
                code="images_stay",
            )
        if self._images == "crops" and given.label is not None:
            raise ConflictError(
                "a label of the whole picture travels with all of it, and only crops leave this device",
                remedy="label boxes, or set edge.capture.images to full",
                code="images_stay",
            )


@dataclass(frozen=True, slots=True)
class _Key:
    """Under which the queue remembers one label; no part contains a colon."""

    example: str
    dataset: str
    revision: int
    digest: str
    sample: str

    @classmethod
    def parse(cls, key: str) -> _Key:
        _, example, dataset, revision, digest, sample = key.split(":")
        return cls(example, dataset, int(revision), digest, sample)

    def __str__(self) -> str:
        return f"example:{self.example}:{self.dataset}:{self.revision}:{self.digest}:{self.sample}"


def _samples(given: Labelling) -> list[str]:
    """What the name of each sample adds to the example's."""
    whole = [""] if given.label is not None else []
    return whole + [f"/{number}" for number in range(len(given.boxes))]


def _digest(given: Labelling) -> str:
    boxes = [[one.label, one.box.x_min, one.box.y_min, one.box.x_max, one.box.y_max] for one in given.boxes]
    return hashlib.sha256(json.dumps([given.label, boxes]).encode()).hexdigest()[:32]


def _facts(example: str, given: Labelling, data: bytes) -> list[NewFact]:
    pixels = decode_image(data, MAX_SIDE * MAX_SIDE)
    parts = [(given.label, pixels)] if given.label is not None else []
    parts += [(one.label, _part(pixels, one.box)) for one in given.boxes]
    return [
        NewFact(
            DataClass.LABELS,
            {
                "dataset": given.dataset, "sample": f"{example}{sample}", "label": label,
                "image_png_base64": base64.b64encode(encode_png(shown, MAX_IMAGE_BYTES)).decode(),
            },
        )
        for sample, (label, shown) in zip(_samples(given), parts, strict=True)
    ]  # fmt: skip


def _part(pixels: Pixels, box: Box) -> Pixels:
    height, width = pixels.shape[:2]
    x_min, y_min, x_max, y_max = round(box.x_min), round(box.y_min), round(box.x_max), round(box.y_max)
    if not (0 <= x_min < x_max <= width and 0 <= y_min < y_max <= height):
        raise InvalidInputError(
            f"a box from ({box.x_min:g}, {box.y_min:g}) to ({box.x_max:g}, {box.y_max:g}) is not in the picture",
            remedy=f"give pixels of the kept picture, which has {width} x {height}",
            code="bad_box",
        )
    return pixels[y_min:y_max, x_min:x_max]
