"""Log-mel features are librosa's.

`librosa_log_mel.npz` holds what librosa 0.11 makes of `sounds.chirp`: `filters.mel(sr=16000, n_fft=400, n_mels=…)` and
`feature.melspectrogram` of the same with `hop_length=160, window="hann", center=True, pad_mode="reflect", power=2`,
for 80 and 128 bands, the last frame dropped and Whisper's scaling applied; made once, in an environment of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from primespark.errors import InvalidInputError
from primespark.inference.log_mel import log_mel, mel_power, mel_weights
from tests.unit.inference.sounds import chirp, tone

LIBROSA = Path(__file__).with_name("librosa_log_mel.npz")


def of_librosa(name: str) -> NDArray[np.float32]:
    with np.load(LIBROSA, allow_pickle=False) as arrays:
        return np.asarray(arrays[name])


@pytest.mark.parametrize("bands", [80, 128])
def test_the_features_are_those_of_librosa(bands: int) -> None:
    features = log_mel(chirp(), bands)
    assert features.shape == (bands, 100)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, of_librosa(f"log_mel_{bands}"), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bands", [80, 128])
def test_the_bands_are_those_of_librosa(bands: int) -> None:
    np.testing.assert_allclose(mel_weights(bands), of_librosa(f"weights_{bands}"), atol=1e-7, rtol=0)


def test_a_long_signal_is_that_of_its_parts() -> None:
    # Against the formula, frame by frame, at the borders of the parts and of the signal.
    samples = np.tile(chirp(), 25)
    power = mel_power(samples)
    mirrored = np.pad(samples, 200, mode="reflect").astype(np.float64)
    window = np.sin(np.pi * np.arange(400) / 400) ** 2
    for frame in (0, 1, 9, 10, 11, 19, 20, 999, 1000, 2499, 2500):
        spectrum = np.abs(np.fft.rfft(mirrored[frame * 160 : frame * 160 + 400] * window)) ** 2
        np.testing.assert_allclose(power[:, frame], mel_weights(80) @ spectrum, rtol=1e-9, atol=1e-15)


@given(st.integers(160, 5000))
def test_there_is_one_frame_for_each_whole_hundredth(count: int) -> None:
    features = log_mel(tone(1)[:count])
    assert features.shape == (80, count // 160)
    assert np.isfinite(features).all()


def test_silence_has_features() -> None:
    np.testing.assert_array_equal(log_mel(np.zeros(1600, np.float32)), np.full((80, 10), -1.5, np.float32))


def refused(samples: NDArray[np.generic], bands: int = 80) -> str:
    with pytest.raises(InvalidInputError) as caught:
        log_mel(samples, bands)  # type: ignore[arg-type]
    return caught.value.code


def test_what_is_no_sound_is_refused() -> None:
    assert refused(tone(1)[:159]) == "audio_too_short"
    assert refused(np.array([], np.float32)) == "bad_audio_array"
    assert refused(np.full(1000, np.nan, np.float32)) == "bad_audio_array"
    assert refused(np.zeros((1000, 2), np.float32)) == "bad_audio_array"
    assert refused(np.zeros(1000)) == "bad_audio_array"
    assert refused(tone(1), 0) == "bad_audio_array"
    assert refused(tone(1), 129) == "bad_audio_array"
