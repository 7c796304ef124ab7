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
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from primespark.errors import InvalidInputError

PAD_LEVEL = 114
MAX_SIDE = 65_535
_CHANNELS = 3
_REDUCING_GAP = 1.0
_ONE_LEVEL = np.float32(1 / 255)
_Level = TypeVar("_Level", np.uint8, np.float32)


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
        self._fill_border(out, PAD_LEVEL)
        _resize(image, self._inside(out))
        return out

    def apply_nchw(
        self,
        image: NDArray[np.uint8],
        out: NDArray[np.float32] | None = None,
        *,
        scratch: NDArray[np.uint8] | None = None,
        has_border: bool = False,
    ) -> NDArray[np.float32]:
        """The same as `to_nchw(apply(image))`, float32 [3, target_height, target_width], in one go.

        Args:
            image: As for `apply`.
            out: Where to write it; a new array without one.
            scratch: Where the scaled image may lie meanwhile, uint8 [target_height, target_width, 3].
            has_border: Whether `out` holds an image that this same letterbox has put there, whose border can stay.

        Raises:
            InvalidInputError: Code `bad_image_array`: another shape or type.
        """
        target = (self.target_height, self.target_width, _CHANNELS)
        if out is None:
            out, has_border = np.empty((_CHANNELS, *target[:2]), dtype=np.float32), False
        if scratch is None:
            scratch = np.empty(target, dtype=np.uint8)
        _check(image, (self.source_height, self.source_width, _CHANNELS))
        _check(scratch, target)
        canvas = out.transpose(1, 2, 0)
        _check(canvas, target, np.float32)
        if not has_border:
            self._fill_border(canvas, float(PAD_LEVEL * _ONE_LEVEL))
        scaled = scratch.reshape(-1)[: self.width * self.height * _CHANNELS]
        scaled = scaled.reshape(self.height, self.width, _CHANNELS)
        _resize(image, scaled)
        to_nchw(scaled, out=self._inside(canvas).transpose(2, 0, 1))
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

    def _inside(self, canvas: NDArray[_Level]) -> NDArray[_Level]:
        return canvas[self.top : self.top + self.height, self.left : self.left + self.width]

    def _fill_border(self, canvas: NDArray[_Level], level: float) -> None:
        bottom, right = self.top + self.height, self.left + self.width
        canvas[: self.top] = level
        canvas[bottom:] = level
        canvas[self.top : bottom, : self.left] = level
        canvas[self.top : bottom, right:] = level

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
    cv2 = _opencv()
    if cv2 is not None and _are_rows_whole(out):
        # Taking the channels apart first lets both steps run over neighbouring bytes: half the time of a strided one.
        for plane, target in zip(cv2.split(canvas), out, strict=True):
            cv2.LUT(plane, _levels(), dst=target)
        return out
    # Without a type NumPy 1 would look at the value and multiply in half precision.
    return np.multiply(planes, _ONE_LEVEL, out=out, dtype=np.float32)


def _are_rows_whole(out: NDArray[np.float32]) -> bool:
    """Whether OpenCV can write into the planes of `out`."""
    _, row, pixel = out.strides
    return out.dtype == np.float32 and pixel == out.itemsize and row >= out.shape[2] * out.itemsize


@cache
def _levels() -> NDArray[np.float32]:
    """0..1 for each of the 256 levels."""
    return np.arange(256, dtype=np.float32) * _ONE_LEVEL


def _border_before(both: int) -> int:
    return round(both / 2 - 0.1)


def _points(places: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(places, dtype=np.float64)
    return values.reshape(*values.shape[:-1], values.shape[-1] // 2, 2)


def _check(image: NDArray[_Level], shape: tuple[int, ...], kind: type[np.generic] = np.uint8) -> None:
    if image.dtype != kind or image.shape != shape:
        raise InvalidInputError(
            f"an image here is {kind.__name__} {list(shape)}, not {image.dtype} {list(image.shape)}",
            code="bad_image_array",
        )


def _resize(image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Fill `out`, a view of any size, with the image."""
    if image.shape == out.shape:
        out[:] = image
        return
    height, width = out.shape[:2]
    cv2 = _opencv()
    if cv2 is None:
        reduced = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=_REDUCING_GAP)
        out[:] = np.asarray(reduced)
        return
    # OpenCV refuses a view whose pixels do not lie as its own do.
    writes_there = out.strides[1:] == (_CHANNELS, 1)
    resized = cv2.resize(image, (width, height), dst=out if writes_there else None, interpolation=cv2.INTER_LINEAR)
    if not writes_there:
        out[:] = resized


@cache
def _opencv() -> Any:
    """OpenCV, or None where it is not installed."""
    try:
        import cv2
    except ImportError:
        return None
    return cv2
