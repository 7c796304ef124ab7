"""Samples in a bounded ring, and into FLAC files."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from primespark.inference.audio import SAMPLE_RATE_HZ

# Of a clip that is cut to fit, kept at each attempt less than the ratio of the bytes says.
_SAFETY = 0.95
_FULL_SCALE = 32_768

Samples = NDArray[np.float32]


class SoundRing:
    """The newest samples of a stream, addressed by their number since its begin.

    Args:
        capacity: Samples.
    """

    def __init__(self, capacity: int) -> None:
        self._ring = np.zeros(capacity, dtype=np.float32)
        self.end = 0

    @property
    def begin(self) -> int:
        """The number of the oldest sample that is kept."""
        return max(self.end - len(self._ring), 0)

    def append(self, samples: Samples) -> None:
        """Add float32 [n] at the end; the oldest make room."""
        newest = samples[-len(self._ring) :]
        start = self.end + len(samples) - len(newest)
        self._ring[np.arange(start, start + len(newest)) % len(self._ring)] = newest
        self.end += len(samples)

    def between(self, begin: int, end: int) -> Samples:
        """A copy of samples [begin, end), less where they are gone or have not come."""
        numbers = np.arange(max(begin, self.begin), min(end, self.end))
        return self._ring[numbers % len(self._ring)]


def encode_flac(samples: Samples, max_bytes: int | None = None, comment: bytes = b"") -> bytes:
    """A FLAC file of 16 bits at 16 kHz; with a bound, as much of the begin as fits.

    Args:
        samples: float32 [n] of -1..1, at least one.
        max_bytes: At least 100 more than `comment` has.
        comment: UTF-8 text kept in the file as its comment.
    """
    while True:
        data = _encode(samples, comment)
        if max_bytes is None or len(data) <= max_bytes or len(samples) == 1:
            return data
        samples = samples[: max(int(len(samples) * _SAFETY * max_bytes / len(data)), 1)]


def read_flac_comment(data: bytes) -> bytes:
    """The comment of a FLAC file.

    Raises:
        OSError: No FLAC.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            return str(file.comment).encode()
    except soundfile.SoundFileError as error:
        raise OSError(str(error)) from None


def _encode(samples: Samples, comment: bytes) -> bytes:
    import soundfile

    file = io.BytesIO()
    with soundfile.SoundFile(file, "w", SAMPLE_RATE_HZ, 1, "PCM_16", format="FLAC") as writer:
        if comment:
            writer.comment = comment.decode()
        # By ourselves: libsndfile scales by 32,767, and what a card gave would not come out as it was.
        writer.write(
            np.clip(np.rint(samples * np.float32(_FULL_SCALE)), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)
        )
    return file.getvalue()
