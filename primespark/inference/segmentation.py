"""Person segmentation: which pixels of an image belong to people."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from primespark.inference.engine import InferenceEngine
from primespark.inference.predictions import Mask

_INPUT = "input_1"
_INSIDE = 0.5


class SelfieSegmenter:
    """Answers one mask of the size of the image.

    Args:
        engine: From float32 `input_1` [1, height, width, 3] RGB 0..1 to [1, height, width, 1], the probability of a
            person in each place.
        width: Of the input, in pixels; the image is stretched to it, as MediaPipe does.
        height: Of the input, in pixels.
    """

    def __init__(self, engine: InferenceEngine, width: int = 256, height: int = 144) -> None:
        self._engine = engine
        self._size = (width, height)

    def __call__(self, image: NDArray[np.uint8]) -> list[Mask]:
        """The mask, also where there is no person: it is then empty, or wrong."""
        height, width = image.shape[:2]
        small = np.asarray(Image.fromarray(image).resize(self._size, Image.Resampling.BILINEAR), dtype=np.float32)
        (probability,) = self._engine.run({_INPUT: (small / np.float32(255))[np.newaxis]})
        whole = Image.fromarray(probability[0, :, :, 0]).resize((width, height), Image.Resampling.BILINEAR)
        return [encode_mask(np.asarray(whole) > _INSIDE)]


def encode_mask(mask: NDArray[np.bool_]) -> Mask:
    """The run lengths of a mask, bool [height, width]."""
    height, width = mask.shape
    pixels = mask.T.reshape(-1)
    edges = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    bounds = np.concatenate(([0], edges, [pixels.size]))
    counts: list[int] = np.diff(bounds).tolist()
    # Runs outside and inside take turns, and the first is outside.
    return {"width": width, "height": height, "counts": [0, *counts] if pixels[0] else counts}


def decode_mask(mask: Mask) -> NDArray[np.bool_]:
    """The mask of run lengths, bool [height, width]."""
    inside = np.arange(len(mask["counts"])) % 2 == 1
    return np.repeat(inside, mask["counts"]).reshape(mask["width"], mask["height"]).T
