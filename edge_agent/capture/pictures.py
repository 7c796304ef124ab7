"""Pixels into JPEG files of a bounded size: whole, cut out, or with boxes drawn."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_agent.capture.geometry import Box
from primespark.core.capture_settings import RegionSettings
from primespark.inference.predictions import Prediction

MAX_SIDE = 1280
MAX_BYTES = 1024 * 1024
# What a picture may have that travels inside a fact: base64 makes it 64 KiB, a fact has at most 100 KiB at the gate.
MAX_TRAVELLING_BYTES = 48 * 1024
_QUALITIES = (85, 70, 50)
# Of the box, added on each side of a crop.
_MARGIN = 0.1
_COLOUR = (255, 190, 0)

Pixels = NDArray[np.uint8]


def cut(pixels: Pixels, region: RegionSettings) -> Pixels:
    """The region of an image, at least one pixel."""
    height, width = pixels.shape[:2]
    x_min, y_min = int(region.x_min * width), int(region.y_min * height)
    x_max, y_max = max(round(region.x_max * width), x_min + 1), max(round(region.y_max * height), y_min + 1)
    return pixels[y_min:y_max, x_min:x_max]


def crop(pixels: Pixels, box: Box) -> Pixels:
    """What is in `box`, which is in fractions, and a tenth more on each side."""
    x_margin, y_margin = _MARGIN * (box.x_max - box.x_min), _MARGIN * (box.y_max - box.y_min)
    x_min, x_max = _span(box.x_min - x_margin, box.x_max + x_margin)
    y_min, y_max = _span(box.y_min - y_margin, box.y_max + y_margin)
    return cut(pixels, RegionSettings(x_min=x_min, y_min=y_min, x_max=x_max, y_max=y_max))


def encode_jpeg(pixels: Pixels, max_bytes: int = MAX_BYTES, comment: bytes = b"") -> bytes:
    """A JPEG of at most `max_bytes`, at most 1280 pixels a side; quality goes first, then size.

    Args:
        pixels: uint8 [height, width, 3] RGB.
        max_bytes: More than `comment` and a header need.
        comment: Kept in the file as its comment.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    side = MAX_SIDE
    while True:
        image.thumbnail((side, side), reducing_gap=2.0)
        for quality in _QUALITIES:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality, comment=comment)
            if file.tell() <= max_bytes or (quality == _QUALITIES[-1] and side == 1):
                return file.getvalue()
        side = max(max(image.size) // 2, 1)


def encode_png(pixels: Pixels, max_bytes: int) -> bytes:
    """A PNG of at most `max_bytes`, at least 1 KiB; scaled down until it has no more.

    Args:
        pixels: uint8 [height, width, 3] RGB.
        max_bytes: Of the file.
    """
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels))
    while True:
        file = io.BytesIO()
        image.save(file, "PNG")
        if file.tell() <= max_bytes:
            return file.getvalue()
        # A little smaller than the ratio of the bytes asks for, so that two or three rounds are enough.
        scale = min(0.95 * math.sqrt(max_bytes / file.tell()), 0.9)
        image = image.resize((max(int(image.width * scale), 1), max(int(image.height * scale), 1)), reducing_gap=2.0)


def read_comment(data: bytes) -> bytes:
    """The comment of a JPEG file.

    Raises:
        OSError: No JPEG.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            comment = image.info.get("comment", b"")
            return comment if isinstance(comment, bytes) else str(comment).encode()
    except Image.DecompressionBombError as error:
        raise OSError(str(error)) from None


def draw_boxes(pixels: Pixels, predictions: Sequence[Prediction]) -> Pixels:
    """The image with the box, label and score of each prediction that has one."""
    from PIL import Image, ImageDraw

    image = Image.fromarray(np.ascontiguousarray(pixels))
    pen, width = ImageDraw.Draw(image), max(2, max(image.size) // 400)
    for prediction in predictions:
        if "box" in prediction:
            box = Box.of(prediction["box"])
            pen.rectangle((box.x_min, box.y_min, box.x_max, box.y_max), outline=_COLOUR, width=width)
            text = f"{prediction['label']} {prediction['score']:.2f}"
            pen.text((box.x_min + 2 * width, box.y_min + 2 * width), text, fill=_COLOUR, font_size=10 + 4 * width)
    return np.asarray(image, dtype=np.uint8)


def _span(low: float, high: float) -> tuple[float, float]:
    """Both within 0..1, the first below the second."""
    low, high = min(max(low, 0.0), 1.0), min(max(high, 0.0), 1.0)
    return (low, high) if low < high else (min(low, 0.999), min(low, 0.999) + 0.001)
