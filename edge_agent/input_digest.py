"""What a result was made from, named by a SHA-256, by which results, events and kept pictures are matched.

A file is named by its bytes, as `sha256sum` does. What a camera, a stream or a microphone gave never was a file: there
it is the decoded pixels or samples. Of a large picture every n-th row is taken: 1 MiB costs 0.7 to 0.9 ms, which is
all that a frame may cost; such a digest tells frames apart, and would not show a change in the rows it leaves out.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

MAX_PIXEL_BYTES = 1024 * 1024


class DigestOf(StrEnum):
    """What was digested."""

    FILE = "file"
    PIXELS = "pixels"
    ROWS = "rows"
    SAMPLES = "samples"


@dataclass(frozen=True, slots=True)
class InputDigest:
    """The SHA-256 of an input of a model."""

    sha256: str
    of: DigestOf

    def to_value(self) -> dict[str, str]:
        """As it stands in facts and in notes beside pictures."""
        return {"input_sha256": self.sha256, "input_digest_of": self.of.value}


def digest_file(data: bytes) -> InputDigest:
    """The digest of a file's bytes."""
    return InputDigest(hashlib.sha256(data).hexdigest(), DigestOf.FILE)


def digest_pixels(pixels: NDArray[np.uint8]) -> InputDigest:
    """The digest of `HEIGHT WIDTH CHANNELS STEP` in ASCII, a line feed, and each STEP-th row of pixels from the first.

    Args:
        pixels: uint8 [height, width, channels].
    """
    step = max(1, -(-pixels.nbytes // MAX_PIXEL_BYTES))
    found = hashlib.sha256(" ".join(str(number) for number in (*pixels.shape, step)).encode() + b"\n")
    found.update(np.ascontiguousarray(pixels[::step]).data)
    return InputDigest(found.hexdigest(), DigestOf.PIXELS if step == 1 else DigestOf.ROWS)


def digest_samples(samples: NDArray[np.float32]) -> InputDigest:
    """The digest of samples of sound, little-endian float32."""
    return InputDigest(hashlib.sha256(np.ascontiguousarray(samples, "<f4").data).hexdigest(), DigestOf.SAMPLES)
