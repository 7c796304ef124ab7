"""A spectral gate: what is as loud as the steady noise in its band is turned down, what is louder passes.

The short-time spectrum is weighted by the Wiener gain 1 - a·N/P (Lim and Oppenheim, "Enhancement and bandwidth
compression of noisy speech", 1979), P being the power around a point of time and band, N the noise of the band. N is a
low quantile of the band's power over time, brought to its mean by the exponential distribution that the power of noise
has; so no stretch without speech has to be found, but a steady tone counts as noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from primespark.inference.audio import Samples, check_samples

_WINDOW = 512
_HOP = 128
# Frames of 30 s at 16 kHz: the noise is estimated anew in each block, and memory is bounded.
_BLOCK_FRAMES = 3750
_QUANTILE = 0.2
_OVERSUBTRACTION = 1.5
# Noise that is left in keeps the ear, and a network, from hearing the gate itself.
_FLOOR = 0.05
_FRAMES_AROUND = 7
_BANDS_AROUND = 3
_NOISE_BANDS_AROUND = 5
_SILENCE = 1e-20

Power = NDArray[np.float64]


def reduce_noise(samples: Samples) -> Samples:
    """`samples`, float32 [n] at 16 kHz, with steady noise turned down; as many, in the same place.

    Raises:
        InvalidInputError: Code `bad_audio_array`: not finite float32 [n].
    """
    check_samples(samples)
    padded = np.pad(samples, (_WINDOW, _WINDOW + _HOP))
    window = np.sqrt(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    cleaned = np.zeros(len(padded))
    start = 0
    for block in np.array_split(frames, -(-len(frames) // _BLOCK_FRAMES)):
        spectrum = np.fft.rfft(block * window)
        spectrum *= _gain(spectrum.real**2 + spectrum.imag**2)
        _overlap_add(cleaned[start * _HOP :], np.fft.irfft(spectrum, _WINDOW) * window)
        start += len(block)
    # Squared Hann windows at a quarter's hop add up to 2.
    return np.clip(cleaned[_WINDOW : _WINDOW + len(samples)] / 2, -1, 1).astype(np.float32)


def _gain(power: Power) -> Power:
    """Of each frame and band, 0.05 to 1."""
    around = _mean_around(_mean_around(power, _FRAMES_AROUND, 0), _BANDS_AROUND, 1)
    noise = np.quantile(power, _QUANTILE, axis=0, keepdims=True) / -np.log(1 - _QUANTILE)
    noise = _mean_around(noise, _NOISE_BANDS_AROUND, 1)
    return np.clip(1 - _OVERSUBTRACTION * noise / np.maximum(around, _SILENCE), _FLOOR, 1)


def _mean_around(values: Power, count: int, axis: int) -> Power:
    """Mean of each value and its neighbours, `count` (odd) in all, the edge repeated."""
    margins = [(0, 0), (0, 0)]
    margins[axis] = (count // 2, count // 2)
    padded = np.pad(values, margins, mode="edge")
    length = values.shape[axis]
    total = np.zeros_like(values)
    for shift in range(count):
        total += padded[shift : shift + length] if axis == 0 else padded[:, shift : shift + length]
    return total / count


def _overlap_add(target: NDArray[np.float64], frames: NDArray[np.float64]) -> None:
    """Add frames, a hop apart, into `target`: those that do not overlap at once."""
    for first in range(_WINDOW // _HOP):
        run = frames[first :: _WINDOW // _HOP].reshape(-1)
        target[first * _HOP : first * _HOP + len(run)] += run
