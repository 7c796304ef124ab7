"""Preprocessing of the digit reader: one way from an image to 64 features, in training and in service.

A scanned digit is 8 x 8 grey values from 0 to 16, bright on dark, each the count of set pixels in a 4 x 4 block of the
scan. As PNG a value takes the grey level 15 times as high.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from primespark.errors import InvalidInputError
from primespark.inference.images import decode_image

SIDE = 8
FEATURES = SIDE * SIDE
MAX_VALUE = 16
# 16 levels a step would put the highest value at 256, one more than a byte holds.
_LEVELS_PER_VALUE = 15
_MAX_DIGIT_PIXELS = 1_000_000


def encode_digit_png(digit: NDArray[np.floating]) -> bytes:
    """The 8-bit grey PNG of a scanned digit, float [8, 8] of 0..16.

    Raises:
        InvalidInputError: Another shape, or values outside 0..16.
    """
    if digit.shape != (SIDE, SIDE) or not bool(np.all((digit >= 0) & (digit <= MAX_VALUE))):
        raise InvalidInputError(f"a digit is {SIDE} x {SIDE} values of 0..{MAX_VALUE}", code="bad_digit")
    levels = np.rint(digit * _LEVELS_PER_VALUE).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "PNG")
    return file.getvalue()


def digit_features(png: bytes) -> NDArray[np.float32]:
    """Features, float32 [64] of 0..1, of an image file.

    Raises:
        InvalidInputError: As `decode_image`.
    """
    return digit_features_of(decode_image(png, _MAX_DIGIT_PIXELS))


def digit_features_of(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features, float32 [64] of 0..1, of a grey [h, w] or RGB [h, w, 3] image of any size."""
    picture = Image.fromarray(image).convert("L")
    if picture.size != (SIDE, SIDE):
        # The mean over each block, as the scans were made.
        picture = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(picture, dtype=np.float32).reshape(FEATURES) / np.float32(_LEVELS_PER_VALUE)
    features: NDArray[np.float32] = np.minimum(values, np.float32(MAX_VALUE)) / np.float32(MAX_VALUE)
    return features
