"""Sounds for tests, made from formulas."""

from __future__ import annotations

import io

import numpy as np
import soundfile
from numpy.typing import NDArray

RATE_HZ = 16_000
Samples = NDArray[np.float32]


def tone(seconds: float, rate_hz: int = RATE_HZ, hz: float = 440.0) -> Samples:
    return (0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def chirp() -> Samples:
    """One second that passes through every band, of which `librosa_log_mel.npz` has the features."""
    t = np.arange(RATE_HZ) / RATE_HZ
    sweep = 0.4 * np.sin(2 * np.pi * (100 * t + 1500 * t**2))
    steady = 0.2 * np.sin(2 * np.pi * 440 * t) * (t < 0.5) + 0.01 * np.sin(2 * np.pi * 6001 * t)
    return (sweep + steady).astype(np.float32)


def vowels(seconds: float) -> Samples:
    """Speech-like: harmonics of a wavering voice under the formants of a, i and u, in syllables with pauses."""
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    pitch = 120 + 15 * np.sin(2 * np.pi * 0.7 * t)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE_HZ
    syllable = np.floor(t / 0.35).astype(int)
    formants = np.array([(730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240)])[syllable % 3]
    voice = np.zeros_like(t)
    for harmonic in range(1, 28):
        distance = (harmonic * pitch)[:, None] - formants
        voice += (np.exp(-((distance / 150) ** 2)) @ (1.0, 0.5, 0.25) + 0.01) * np.sin(harmonic * phase)
    loudness = np.clip(np.sin(np.pi * (t % 0.35) / 0.25), 0, 1) * (t % 0.35 < 0.25)
    spoken: Samples = (0.3 * voice * loudness / np.abs(voice).max()).astype(np.float32)
    return spoken


def encode_audio(samples: NDArray[np.float32], rate_hz: int, kind: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate_hz, format=kind, subtype=subtype)
    return file.getvalue()
