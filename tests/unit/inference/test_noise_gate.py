"""The gate takes noise away and leaves the rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from primespark.errors import InvalidInputError
from primespark.inference.noise_gate import reduce_noise
from tests.unit.inference.sounds import Samples, tone, vowels


def decibels(signal: NDArray[np.floating], estimate: NDArray[np.floating]) -> float:
    """Ratio of the signal to what the estimate has beside it."""
    wanted = signal.astype(np.float64)
    return float(10 * np.log10((wanted**2).sum() / ((estimate - wanted) ** 2).sum()))


def with_noise(signal: Samples, ratio_db: float, seed: int) -> Samples:
    noise = np.random.default_rng(seed).standard_normal(len(signal))
    loudness = np.sqrt((signal.astype(np.float64) ** 2).mean() / 10 ** (ratio_db / 10))
    noisy: Samples = (signal + noise * loudness).astype(np.float32)
    return noisy


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_speech_in_as_much_white_noise_gains_four_decibels(seed: int) -> None:
    speech = 0.3 * vowels(8)
    noisy = with_noise(speech, 0, seed)
    before = decibels(speech, noisy)
    assert before == pytest.approx(0, abs=0.1)
    assert decibels(speech, reduce_noise(noisy)) - before >= 4


def test_speech_that_outlasts_a_block_gains_too() -> None:
    speech = 0.3 * vowels(70)
    noisy = with_noise(speech, 0, 4)
    cleaned = reduce_noise(noisy)
    # Around each border between blocks as well, of which there are two.
    for start in range(0, 70, 5):
        part = slice(start * 16_000, (start + 5) * 16_000)
        assert decibels(speech[part], cleaned[part]) - decibels(speech[part], noisy[part]) >= 3


def test_clean_speech_stays_as_it_is() -> None:
    speech = vowels(8)
    assert decibels(speech, reduce_noise(speech)) > 20


def test_a_click_stays_where_it_is() -> None:
    click = np.zeros(16_000, np.float32)
    click[8_000] = 0.9
    cleaned = reduce_noise(click)
    assert int(np.argmax(np.abs(cleaned))) == 8_000
    assert cleaned[8_000] == pytest.approx(0.9, abs=0.05)


def test_silence_stays_silent() -> None:
    np.testing.assert_array_equal(reduce_noise(np.zeros(5000, np.float32)), np.zeros(5000, np.float32))


@given(st.integers(1, 3000), st.floats(0, 1))
def test_any_length_comes_back_within_full_scale(count: int, loudness: float) -> None:
    cleaned = reduce_noise((2 * tone(0.2)[:count] * np.float32(loudness)).astype(np.float32))
    assert cleaned.shape == (count,)
    assert cleaned.dtype == np.float32
    assert np.abs(cleaned).max() <= 1


def test_what_is_no_sound_is_refused() -> None:
    with pytest.raises(InvalidInputError) as caught:
        reduce_noise(np.full(100, np.inf, np.float32))
    assert caught.value.code == "bad_audio_array"
