"""Where frames come from: the shipped samples, an image, a folder of images, a video file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_agent.input_digest import InputDigest, digest_file, digest_pixels
from primespark.core.extras import how_to_add
from primespark.errors import InvalidInputError, MissingDependencyError, NotFoundError
from primespark.inference.images import decode_image
from primespark.inference.samples import sample_images

SAMPLES = "samples"
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp"}
MAX_IMAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What a frame shows: uint8 [height, width, 3], RGB; and the digest by which it is known."""

    pixels: NDArray[np.uint8]
    digest: InputDigest


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame: where it is from, and how to get what it shows, which the thread that infers does."""

    source: str
    see: Callable[[], Seen]


def frames(source: str, max_pixels: int, name: str | None = None) -> Iterator[Frame]:
    """The frames of a source, once through; reads one at a time.

    Args:
        source: `samples`, or the path of an image, a folder or a video file.
        max_pixels: Larger images are faults.
        name: What frames are called after; without one, the last part of the path.

    Raises:
        NotFoundError: Code `no_such_source`.
        InvalidInputError: Code `undecodable_video`.
        MissingDependencyError: A video, and OpenCV is not installed; the samples, and no package has any.
    """
    path = Path(source)
    prefix = name or path.name
    if source == SAMPLES:
        for file_name, data in sample_images():
            yield Frame(f"{prefix}/{file_name}", partial(_decode, data, max_pixels))
        return
    if path.is_dir():
        for file in sorted(path.iterdir()):
            if file.suffix.lower() in IMAGE_SUFFIXES:
                yield Frame(f"{prefix}/{file.name}", partial(_read_image, file, max_pixels))
    elif not path.exists():
        raise NotFoundError(
            f"no source {source!r}", remedy="correct edge.capture.sources, or attach the camera", code="no_such_source"
        )
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        yield Frame(prefix, partial(_read_image, path, max_pixels))
    else:
        yield from _video(path, max_pixels, prefix)


def see_pixels(pixels: NDArray[np.uint8]) -> Seen:
    """A picture that never was a file of its own."""
    return Seen(pixels, digest_pixels(pixels))


def _decode(data: bytes, max_pixels: int) -> Seen:
    return Seen(decode_image(data, max_pixels), digest_file(data))


def _read_image(path: Path, max_pixels: int) -> Seen:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise NotFoundError(f"cannot read {path.name}: {error.strerror}", code="no_such_source") from None
    if len(data) > MAX_IMAGE_BYTES:
        raise InvalidInputError(f"{path.name} is over {MAX_IMAGE_BYTES} bytes", code="image_too_large")
    return _decode(data, max_pixels)


def _video(path: Path, max_pixels: int, prefix: str) -> Iterator[Frame]:
    try:
        import cv2
    except ModuleNotFoundError:
        raise MissingDependencyError(
            f"{path.name} is a video, which needs OpenCV", remedy=how_to_add("edge-cv")
        ) from None
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise InvalidInputError(f"{path.name} is no video that can be read", code="undecodable_video")
        if video.get(cv2.CAP_PROP_FRAME_WIDTH) * video.get(cv2.CAP_PROP_FRAME_HEIGHT) > max_pixels:
            raise InvalidInputError(f"{path.name} has frames over {max_pixels} pixels", code="image_too_large")
        number = 0
        while True:
            is_read, pixels = video.read()
            if not is_read:
                return
            yield Frame(f"{prefix}#{number}", partial(_as_rgb, pixels))
            number += 1
    finally:
        video.release()


def _as_rgb(pixels: Any) -> Seen:
    rgb: NDArray[np.uint8] = np.ascontiguousarray(pixels[:, :, ::-1])
    return see_pixels(rgb)
