"""The one letterbox: an image scaled to fit a model's input, centred on grey, and the way back for what was found.

The rule is that of Ultralytics' `LetterBox`, with which YOLO models are trained: one scale for both sides, sizes and
borders rounded half to even, the odd row or column of border below and right. Every engine goes through it, so that
boxes found on a Hailo chip and on the processor lie in the same place.

Pixels are resampled bilinearly by OpenCV where it is installed. Pillow, which else does it, averages over the pixels
that OpenCV skips when it reduces an image: smoother, on photographs some three levels apart on average, and slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from primespark.errors import InvalidInputError

PAD_LEVEL = 114
MAX_SIDE = 65_535
_CHANNELS = 3
_REDUCING_GAP = 1.0
_ONE_LEVEL = np.float32(1 / 255)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where an image of one size lies in an input of another.

    Attributes:
        source_width: Pixels of the image; 1 to 65,535, as the other three.
        source_height: The same.
        target_width: Pixels of the input.
        target_height: The same.
        width: Pixels of the scaled image, at least 1.
        height: The same.
        left: Columns of border before it.
        top: Rows of border above it.

    Raises:
        InvalidInputError: Code `bad_image_array`: a side outside its bounds.
    """

    source_width: int
    source_height: int
    target_width: int
    target_height: int
    width: int = field(init=False)
    height: int = field(init=False)
    left: int = field(init=False)
    top: int = field(init=False)

    def __post_init__(self) -> None:
        sides = (self.source_width, self.source_height, self.target_width, self.target_height)
        if not all(1 <= side <= MAX_SIDE for side in sides):
            raise InvalidInputError(f"sides are 1 to {MAX_SIDE} pixels, not {sides}", code="bad_image_array")
        scale = min(self.target_height / self.source_height, self.target_width / self.source_width)
        width, height = max(1, round(self.source_width * scale)), max(1, round(self.source_height * scale))
        object.__setattr__(self, "width", width)
        object.__setattr__(self, "height", height)
        object.__setattr__(self, "left", _border_before(self.target_width - width))
        object.__setattr__(self, "top", _border_before(self.target_height - height))

    def apply(self, image: NDArray[np.uint8], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """The input, uint8 [target_height, target_width, 3], for an image, uint8 [source_height, source_width, 3].

        Args:
            image: In any channel order, which is kept.
            out: Where to write it, all of it; a new array without one.

        Raises:
            InvalidInputError: Code `bad_image_array`: another shape or type.
        """
        if out is None:
            out = np.empty((self.target_height, self.target_width, _CHANNELS), dtype=np.uint8)
        _check(image, (self.source_height, self.source_width, _CHANNELS))
        _check(out, (self.target_height, self.target_width, _CHANNELS))
        bottom, right = self.top + self.height, self.left + self.width
        out[: self.top] = PAD_LEVEL
        out[bottom:] = PAD_LEVEL
        out[self.top : bottom, : self.left] = PAD_LEVEL
        out[self.top : bottom, right:] = PAD_LEVEL
        _resize(image, out[self.top : bottom, self.left : right])
        return out

    def map(self, places: ArrayLike) -> NDArray[np.float32]:
        """Places of the image in the input; the inverse of `unmap` for places inside the image."""
        points = _points(places)
        return (points * self._scale + self._offset).reshape(np.shape(places)).astype(np.float32)

    def unmap(self, places: ArrayLike) -> NDArray[np.float32]:
        """Places of the input in the image, moved to its edge where they lie outside.

        Args:
            places: [..., 4] boxes x_min, y_min, x_max, y_max in pixels, or [..., 2n] points x, y.

        Returns:
            float32 of the same shape.
        """
        points = (_points(places) - self._offset) / self._scale
        inside = np.clip(points, 0, (self.source_width, self.source_height))
        return inside.reshape(np.shape(places)).astype(np.float32)

    @property
    def _scale(self) -> tuple[float, float]:
        # By axis: rounding gives the two sides slightly different scales.
        return self.width / self.source_width, self.height / self.source_height

    @property
    def _offset(self) -> tuple[int, int]:
        return self.left, self.top


def to_nchw(canvas: NDArray[np.uint8], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """A canvas, uint8 [h, w, 3], as a network on the processor takes it: float32 [3, h, w] of 0..1.

    Args:
        canvas: What `Letterbox.apply` made.
        out: Where to write it, such as one place of a batch [n, 3, h, w]; a new array without one.

    Raises:
        InvalidInputError: Code `bad_image_array`: `out` has another shape.
    """
    planes = canvas.transpose(2, 0, 1)
    if out is None:
        out = np.empty(planes.shape, dtype=np.float32)
    elif out.shape != planes.shape:
        raise InvalidInputError(f"{list(out.shape)} does not take {list(planes.shape)}", code="bad_image_array")
    # Without a type NumPy 1 would look at the value and multiply in half precision.
    return np.multiply(planes, _ONE_LEVEL, out=out, dtype=np.float32)


def _border_before(both: int) -> int:
    return round(both / 2 - 0.1)


def _points(places: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(places, dtype=np.float64)
    return values.reshape(*values.shape[:-1], values.shape[-1] // 2, 2)


def _check(image: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
    if image.dtype != np.uint8 or image.shape != shape:
        raise InvalidInputError(
            f"an image here is uint8 {list(shape)}, not {image.dtype} {list(image.shape)}", code="bad_image_array"
        )


def _resize(image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Fill `out`, a view of any size, with the image."""
    if image.shape == out.shape:
        out[:] = image
        return
    height, width = out.shape[:2]
    cv2 = _opencv()
    if cv2 is None:
        pillow = Image.fromarray(image)
        out[:] = np.asarray(pillow.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP))
        return
    written = cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
    if written is not out:
        # OpenCV writes into most views, and makes an array of its own for the others.
        out[:] = written


@cache
def _opencv() -> Any:
    """OpenCV, or None where it is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2
