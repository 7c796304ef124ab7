"""Microphones for tests: ALSA itself with recordings, or a pipe that a test fills, where a sound card would be."""

from __future__ import annotations

import os
import shutil
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

Samples = NDArray[np.int16]
RATE_HZ = 16_000
_ALSA = Path("/usr/share/alsa/alsa.conf")
_SOUNDS = Path("/usr/share/sounds/alsa")


def needs_alsa() -> pytest.MarkDecorator:
    """Skips where ALSA's programs are not installed."""
    is_here = shutil.which("arecord") is not None and _ALSA.exists() and _SOUNDS.exists()
    return pytest.mark.skipif(not is_here, reason="no arecord: apt-get install alsa-utils")


def recording(name: str) -> Samples:
    """A recording that comes with alsa-utils, at 16 kHz: the mean of each three samples of 48 kHz."""
    with wave.open(str(_SOUNDS / name)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (48_000, 1, 2)
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    mono: Samples = samples[: len(samples) // 3 * 3].reshape(-1, 3).mean(axis=1).astype(np.int16)
    return mono


def silence(seconds: float) -> Samples:
    """Nothing."""
    return np.zeros(round(seconds * RATE_HZ), np.int16)


def define(folder: Path, **inputs: Path) -> Path:
    """ALSA's configuration with a microphone for each input, a file of samples followed by silence, or a pipe."""
    microphones = (
        f'pcm.{name} {{ type file; slave.pcm "null"; file "/dev/null"; infile "{path}"; format "raw" }}\n'
        for name, path in inputs.items()
    )
    file = folder / "asound.conf"
    file.write_text(f"<{_ALSA}>\n{''.join(microphones)}")
    return file


@contextmanager
def microphone(folder: Path, monkeypatch: pytest.MonkeyPatch, samples: Samples, name: str = "desk") -> Iterator[None]:
    """A microphone in front of which `samples` are heard each time it is opened, then silence."""
    with monkeypatch.context() as patch:
        patch.setenv("ALSA_CONFIG_PATH", str(define(folder, **{name: leave(folder, samples, name)})))
        yield


def leave(folder: Path, samples: Samples, name: str = "desk") -> Path:
    """A file for `define` that holds `samples`."""
    path = folder / f"{name}.raw"
    # At the end ALSA gives what its buffer held last, over and over.
    path.write_bytes(np.concatenate((samples, silence(5))).tobytes())
    return path


@contextmanager
def open_pipe(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = "desk") -> Iterator[int]:
    """A microphone that gives what is written to the descriptor, and hangs in its driver while nothing is."""
    path = folder / f"{name}.pipe"
    os.mkfifo(path)
    # Both ends, so that neither opening waits for the other.
    descriptor = os.open(path, os.O_RDWR)
    try:
        with monkeypatch.context() as patch:
            patch.setenv("ALSA_CONFIG_PATH", str(define(folder, **{name: path})))
            yield descriptor
    finally:
        os.close(descriptor)
