"""Whether an array is what a kind of model takes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import InvalidInputError

_CHANNELS = 3


def check_image(image: NDArray[Any]) -> None:
    """Nothing, if this is an image: uint8 [height, width, 3].

    Raises:
        InvalidInputError: Code `bad_image_array`.
    """
    if image.dtype != np.uint8 or image.ndim != _CHANNELS or image.shape[2] != _CHANNELS or not image.size:
        raise InvalidInputError(
            f"an image is uint8 [height, width, 3], not {image.dtype} {list(image.shape)}", code="bad_image_array"
        )


def check_audio(samples: NDArray[Any]) -> None:
    """Nothing, if this is a recording: finite float32 [samples].

    Raises:
        InvalidInputError: Code `bad_audio_array`.
    """
    if samples.dtype != np.float32 or samples.ndim != 1 or not np.isfinite(samples).all():
        raise InvalidInputError(
            f"a recording is finite float32 [samples], not {samples.dtype} {list(samples.shape)}",
            code="bad_audio_array",
        )


def check_table(rows: NDArray[Any]) -> None:
    """Nothing, if this is a table: float32 [rows, features].

    Raises:
        InvalidInputError: Code `bad_table`.
    """
    if rows.dtype != np.float32 or rows.ndim != 2 or not rows.size:
        raise InvalidInputError(
            f"a table is float32 [rows, features], not {rows.dtype} {list(rows.shape)}", code="bad_table"
        )
