"""What is made of images, sounds and sensor readings before a model sees them, one class a kind of data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from primespark.errors import InvalidInputError
from primespark.inference.audio import SAMPLE_RATE_HZ, Samples, check_samples, decode_audio, resample
from primespark.inference.batches import Batch, BatchRing
from primespark.inference.images import decode_image
from primespark.inference.letterbox import Letterbox
from primespark.inference.log_mel import BANDS, MAX_BANDS, log_mel
from primespark.inference.noise_gate import reduce_noise
from primespark.inference.sensors import SensorWindows, sum_up

_CHANNELS = 3
_INT16_SCALE = np.float32(1 / 32768)

Side = Annotated[int, Field(ge=1, le=2048)]
ImageData = bytes | NDArray[np.uint8]
AudioData = bytes | NDArray[np.float32] | NDArray[np.int16]
SensorData = tuple[ArrayLike, ArrayLike]


class Layout(StrEnum):
    """How an engine wants its images."""

    NCHW_FLOAT32 = "nchw_float32"
    NHWC_UINT8 = "nhwc_uint8"


class PreprocessingConfig(BaseModel):
    """What a model wants.

    Attributes:
        resize_dims: Width and height of its input; images are letterboxed into it.
        layout: `nchw_float32`, 0..1, for ONNX on the processor; `nhwc_uint8` for a Hailo chip, which divides itself.
        quality: With one, the letterboxed image is given as a JPEG file of this quality too.
        sample_rate: Hz of the samples, and of those given as an array.
        noise_reduction: Whether steady noise is turned down.
        mel_bands: Bands of the log-mel features, which are made at 16 kHz; 0 for none.
        window_s: Seconds of a window of sensor readings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resize_dims: tuple[Side, Side] = (640, 640)
    layout: Layout = Layout.NCHW_FLOAT32
    quality: Annotated[int, Field(ge=1, le=95)] | None = None
    sample_rate: Annotated[int, Field(ge=8_000, le=48_000)] = SAMPLE_RATE_HZ
    noise_reduction: bool = True
    mel_bands: Annotated[int, Field(ge=0, le=MAX_BANDS)] = BANDS
    window_s: Annotated[float, Field(gt=0, le=31_536_000)] = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedImage:
    """An image as a model takes it.

    Attributes:
        tensor: float32 [3, height, width] of 0..1, or uint8 [height, width, 3]; RGB.
        letterbox: Where the image lies in it; its `unmap` leads back.
        jpeg: The letterboxed image as a file, where one was asked for.
    """

    tensor: NDArray[Any]
    letterbox: Letterbox
    jpeg: bytes | None


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedImages:
    """A batch: `tensor` [n, …] is read-only; its memory is used again when no part of it is referred to any more."""

    tensor: NDArray[Any]
    letterboxes: tuple[Letterbox, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ProcessedAudio:
    """A sound as a model takes it.

    Attributes:
        samples: float32 [n] of -1..1, one channel.
        sample_rate_hz: Their rate.
        features: float32 [bands, frames] as `log_mel` has them, None where none are asked for.
    """

    samples: Samples
    sample_rate_hz: int
    features: NDArray[np.float32] | None


class ImagePreprocessor:
    """Image files and arrays into a model's input; safe to share between threads.

    Args:
        max_pixels: Larger files are refused before they are decoded.
    """

    def __init__(self, max_pixels: int = 25_000_000) -> None:
        self._max_pixels = max_pixels
        self._ring = BatchRing()

    def process(self, data: ImageData, config: PreprocessingConfig) -> ProcessedImage:
        """One image: a PNG, JPEG or WebP file, or uint8 [h, w, 3] RGB.

        Raises:
            InvalidInputError: Code `undecodable_image`, `image_too_large` or `bad_image_array`.
        """
        image = self._decoded(data)
        letterbox = _letterbox(image, config)
        if config.quality is None and config.layout is Layout.NCHW_FLOAT32:
            return ProcessedImage(letterbox.apply_nchw(image), letterbox, None)
        canvas = letterbox.apply(image)
        jpeg = None if config.quality is None else _encode_jpeg(canvas, config.quality)
        if config.layout is Layout.NHWC_UINT8:
            return ProcessedImage(canvas, letterbox, jpeg)
        return ProcessedImage(letterbox.apply_nchw(image), letterbox, jpeg)

    def process_batch(self, data: Sequence[ImageData], config: PreprocessingConfig) -> ProcessedImages:
        """Up to 32 images, as `process` takes them, into memory that is used again; no files are made of them.

        Raises:
            InvalidInputError: As `process`, for the first that is at fault; code `bad_batch`: none or too many.
            OverloadedError: Code `batches_held`: two batches are in use.
        """
        width, height = config.resize_dims
        is_float = config.layout is Layout.NCHW_FLOAT32
        shape = (_CHANNELS, height, width) if is_float else (height, width, _CHANNELS)
        batch = self._ring.take(len(data), shape, np.float32 if is_float else np.uint8)
        scratch = np.empty((height, width, _CHANNELS), dtype=np.uint8)
        letterboxes = []
        for place, one in enumerate(data):
            image = self._decoded(one)
            letterbox = _letterbox(image, config)
            if is_float:
                _write(batch, place, letterbox, image, scratch)
            else:
                letterbox.apply(image, out=batch.target[place])
            letterboxes.append(letterbox)
        return ProcessedImages(batch.array, tuple(letterboxes))

    def _decoded(self, data: ImageData) -> NDArray[np.uint8]:
        return decode_image(data, self._max_pixels) if isinstance(data, bytes) else data


class AudioPreprocessor:
    """Audio files and samples into a model's input; safe to share between threads.

    Args:
        max_seconds: Longer sounds are refused, files before they are decoded.
    """

    def __init__(self, max_seconds: float = 300.0) -> None:
        self._max_seconds = max_seconds

    def process(self, data: AudioData, config: PreprocessingConfig) -> ProcessedAudio:
        """A WAV, FLAC or OGG file, or the samples [n] of one channel, float32 or int16, at `sample_rate`.

        Raises:
            InvalidInputError: Code `undecodable_audio`, `audio_too_long`, `audio_too_short` or `bad_audio_array`.
        """
        samples = self._decoded(data, config.sample_rate)
        if config.noise_reduction:
            samples = reduce_noise(samples)
        features = None
        if config.mel_bands:
            features = log_mel(resample(samples, config.sample_rate), config.mel_bands)
        return ProcessedAudio(samples, config.sample_rate, features)

    def _decoded(self, data: AudioData, sample_rate_hz: int) -> Samples:
        if isinstance(data, bytes):
            return decode_audio(data, self._max_seconds, sample_rate_hz)
        samples: Any = data * _INT16_SCALE if data.dtype == np.int16 else data
        check_samples(samples)
        if len(samples) > self._max_seconds * sample_rate_hz:
            raise InvalidInputError(
                f"audio of {len(samples)} samples, limit {self._max_seconds:g} s", code="audio_too_long"
            )
        clipped: Samples = np.clip(samples, -1, 1)
        return clipped


class SensorPreprocessor:
    """Readings of a sensor into windows."""

    def process(self, data: SensorData, config: PreprocessingConfig) -> SensorWindows:
        """Times in seconds and as many readings, in any order; a reading that failed is NaN.

        Raises:
            InvalidInputError: Code `bad_series` or `too_many_windows`.
        """
        times_s, values = data
        return sum_up(times_s, values, config.window_s)


def _letterbox(image: NDArray[np.uint8], config: PreprocessingConfig) -> Letterbox:
    if image.ndim != _CHANNELS:
        raise InvalidInputError(
            f"an image is uint8 [height, width, 3], not {image.dtype} {list(image.shape)}", code="bad_image_array"
        )
    height, width = image.shape[:2]
    return Letterbox(width, height, *config.resize_dims)


def _write(
    batch: Batch, place: int, letterbox: Letterbox, image: NDArray[np.uint8], scratch: NDArray[np.uint8]
) -> None:
    """Put an image into a float batch; the border stays where the last one at this place had the same."""
    has_border = batch.marks.pop(place, None) == letterbox
    letterbox.apply_nchw(image, out=batch.target[place], scratch=scratch, has_border=has_border)
    batch.marks[place] = letterbox


def _encode_jpeg(image: NDArray[np.uint8], quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return file.getvalue()
