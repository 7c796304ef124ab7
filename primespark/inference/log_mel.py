"""The log-mel spectrogram that Whisper, and the audio models of the Hailo collection, are trained on.

Frames of 25 ms every 10 ms under a periodic Hann window, the signal mirrored at its ends; power; triangular bands on
Slaney's mel scale, each of unit area (Slaney, Auditory Toolbox, 1998; the default of librosa); then Whisper's scaling.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from primespark.errors import InvalidInputError
from primespark.inference.audio import SAMPLE_RATE_HZ, Samples, check_samples

WINDOW = 400
HOP = 160
BANDS = 80
MAX_BANDS = 128
# So few that OpenBLAS multiplies in this thread: its others, once woken, spin for longer than the work takes.
_FRAMES_AT_ONCE = 10
_SMALLEST_POWER = 1e-10
_DYNAMIC_DECADES = 8
# Slaney's scale: linear up to 1 kHz, from there 27 mels for each factor of 6.4.
_HZ_PER_MEL = 200 / 3
_LINEAR_UP_TO_HZ = 1000.0
_LINEAR_UP_TO_MEL = _LINEAR_UP_TO_HZ / _HZ_PER_MEL
_LOG_STEP = np.log(6.4) / 27


def log_mel(samples: Samples, bands: int = BANDS) -> NDArray[np.float32]:
    """Whisper's features of `samples`, float32 [n] at 16 kHz: float32 [bands, n // 160], about -1.5..1.5.

    Raises:
        InvalidInputError: Code `bad_audio_array`: not finite float32 [n], other than 1 to 128 bands;
            `audio_too_short`: under 160 samples.
    """
    power = mel_power(samples, bands)[:, :-1]
    decades = np.log10(np.maximum(power, _SMALLEST_POWER))
    scaled: NDArray[np.float64] = (np.maximum(decades, decades.max() - _DYNAMIC_DECADES) + 4) / 4
    return scaled.astype(np.float32)


def mel_power(samples: Samples, bands: int = BANDS) -> NDArray[np.float64]:
    """Power in each band, float64 [bands, 1 + n // 160]; else as `log_mel`."""
    check_samples(samples)
    if len(samples) < HOP:
        raise InvalidInputError(
            f"audio of {len(samples)} samples", remedy=f"send at least {HOP}", code="audio_too_short"
        )
    if not 1 <= bands <= MAX_BANDS:
        raise InvalidInputError(f"{bands} mel bands, there are 1 to {MAX_BANDS}", code="bad_audio_array")
    mirrored = np.pad(samples, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(mirrored, WINDOW)[::HOP]
    window, weights = _window(), mel_weights(bands)
    power = np.empty((bands, len(frames)))
    for start in range(0, len(frames), _FRAMES_AT_ONCE):
        # In double precision: NumPy 1 transforms in nothing else, and quiet bands lie eight decades below loud ones.
        spectrum = np.fft.rfft(frames[start : start + _FRAMES_AT_ONCE] * window)
        power[:, start : start + len(spectrum)] = weights @ (spectrum.real**2 + spectrum.imag**2).T
    return power


@cache
def mel_weights(bands: int) -> NDArray[np.float64]:
    """Weight of each of 201 frequencies in each band, [bands, 201]; read-only."""
    highest = _LINEAR_UP_TO_MEL + np.log(SAMPLE_RATE_HZ / 2 / _LINEAR_UP_TO_HZ) / _LOG_STEP
    mels = np.linspace(0, highest, bands + 2)
    above = np.maximum(mels - _LINEAR_UP_TO_MEL, 0)
    corners = np.where(above > 0, _LINEAR_UP_TO_HZ * np.exp(_LOG_STEP * above), mels * _HZ_PER_MEL)
    frequencies = np.linspace(0, SAMPLE_RATE_HZ / 2, WINDOW // 2 + 1)
    low, middle, high = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    triangles = np.minimum((frequencies - low) / (middle - low), (high - frequencies) / (high - middle))
    weights: NDArray[np.float64] = np.maximum(triangles, 0) * (2 / (high - low))
    weights.setflags(write=False)
    return weights


@cache
def _window() -> NDArray[np.float64]:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW))
