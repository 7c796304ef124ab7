"""Audio files into samples: WAV, FLAC and OGG, bounded by what their header says and again by what is decoded.

A file is read second by second, mixed to one channel and resampled as it comes, so that memory is bounded by the
seconds allowed and not by the file's rate or channels.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.core.extras import how_to_add
from primespark.errors import InvalidInputError, MissingDependencyError

SAMPLE_RATE_HZ = 16_000
MEDIA_TYPES = ("audio/wav", "audio/x-wav", "audio/wave", "audio/flac", "audio/x-flac", "audio/ogg")
MAX_RATE_HZ = 384_000
MAX_CHANNELS = 32
_FORMATS = {"WAV", "WAVEX", "RF64", "FLAC", "OGG"}
# What libsndfile says of a stream whose header does not tell its length.
_UNKNOWN_FRAMES = 2**62

Samples = NDArray[np.float32]


def decode_audio(data: bytes, max_seconds: float, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """The sound of a WAV, FLAC or OGG file: float32 [n] of -1..1, channels averaged, at `sample_rate_hz`.

    A WAV or OGG file that ends early (a recorder lost power) gives what it has; a FLAC file is refused.

    Args:
        data: The file's bytes.
        max_seconds: Most seconds it may last.
        sample_rate_hz: Of the answer.

    Raises:
        InvalidInputError: Code `undecodable_audio`; `audio_too_long`, before anything is decoded where the header tells
            the length.
        MissingDependencyError: The decoder is not installed.
    """
    if not _looks_like_audio(data):
        raise _undecodable("not a WAV, FLAC or OGG file")
    soundfile = _soundfile()
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            _check_header(file, max_seconds)
            return _resampled(_mono(file, max_seconds), file.samplerate, sample_rate_hz)
    except soundfile.SoundFileError as error:
        raise _undecodable(f"damaged audio: {' '.join(str(error).split())[:120]}") from None


def resample(samples: Samples, rate_hz: int, sample_rate_hz: int = SAMPLE_RATE_HZ) -> Samples:
    """`samples`, float32 [n] at `rate_hz`, at another rate, by soxr's high quality filter.

    Raises:
        InvalidInputError: Code `bad_audio_array`: not such an array, or a rate outside 1 to 384,000 Hz.
    """
    if not (1 <= rate_hz <= MAX_RATE_HZ and 1 <= sample_rate_hz <= MAX_RATE_HZ):
        raise InvalidInputError(f"a rate is 1 to {MAX_RATE_HZ} Hz", code="bad_audio_array")
    check_samples(samples)
    return _resampled(iter([samples]), rate_hz, sample_rate_hz)


def check_samples(samples: NDArray[np.generic]) -> None:
    """Nothing, if these are finite samples of one channel, float32 [n], at least one.

    Raises:
        InvalidInputError: Code `bad_audio_array`.
    """
    if samples.dtype != np.float32 or samples.ndim != 1 or not samples.size:
        raise InvalidInputError(
            f"audio is float32 [samples], not {samples.dtype} {list(samples.shape)}", code="bad_audio_array"
        )
    if not np.isfinite(samples).all():
        raise InvalidInputError("audio has samples that are no finite numbers", code="bad_audio_array")


def _looks_like_audio(data: bytes) -> bool:
    """Whether it begins as one of the formats; libsndfile reads many more, whose parsers no caller should reach."""
    is_wav = data[:4] in (b"RIFF", b"RF64") and data[8:12] == b"WAVE"
    return is_wav or data[:4] in (b"fLaC", b"OggS")


def _check_header(file: Any, max_seconds: float) -> None:
    if file.format not in _FORMATS:
        raise _undecodable("not a WAV, FLAC or OGG file")
    if not (1 <= file.samplerate <= MAX_RATE_HZ and 1 <= file.channels <= MAX_CHANNELS):
        raise _undecodable(f"{file.channels} channels at {file.samplerate} Hz")
    if file.frames < _UNKNOWN_FRAMES and file.frames > max_seconds * file.samplerate:
        raise _too_long(f"{file.frames / file.samplerate:.1f} s", max_seconds)


def _mono(file: Any, max_seconds: float) -> Iterator[Samples]:
    """Blocks of a second, channels averaged."""
    read = 0
    while len(block := file.read(file.samplerate, dtype="float32", always_2d=True)):
        read += len(block)
        if read > max_seconds * file.samplerate:
            raise _too_long(f"more than {max_seconds:g} s", max_seconds)
        mono: Samples = block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise _undecodable("samples that are no finite numbers")
        yield np.clip(mono, -1, 1)
    if not read:
        raise _undecodable("no samples")


def _resampled(blocks: Iterator[Samples], rate_hz: int, sample_rate_hz: int) -> Samples:
    if rate_hz == sample_rate_hz:
        return np.concatenate(list(blocks))
    try:
        import soxr
    except ImportError:
        raise _missing("soxr") from None

    stream = soxr.ResampleStream(rate_hz, sample_rate_hz, 1, dtype="float32", quality="HQ")
    parts = [stream.resample_chunk(np.ascontiguousarray(block)) for block in blocks]
    parts.append(stream.resample_chunk(np.empty(0, dtype=np.float32), last=True))
    # The filter overshoots at full scale.
    resampled: Samples = np.clip(np.concatenate(parts), -1, 1)
    return resampled


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError):  # OSError: the wheel without its library
        raise _missing("soundfile") from None
    return soundfile


def _missing(package: str) -> MissingDependencyError:
    return MissingDependencyError(f"audio needs {package}", remedy=how_to_add("edge"))


def _undecodable(cause: str) -> InvalidInputError:
    return InvalidInputError(cause, remedy="send a whole WAV, FLAC or OGG file", code="undecodable_audio")


def _too_long(found: str, max_seconds: float) -> InvalidInputError:
    return InvalidInputError(
        f"audio of {found}, limit {max_seconds:g} s", remedy="send a shorter piece", code="audio_too_long"
    )
