"""The ring of samples, windows of a recording, and FLAC files: laws against plain lists."""

from __future__ import annotations

import io
from datetime import timedelta

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.capture.hearing import Recording
from edge_agent.capture.sounds import SoundRing, encode_flac, read_flac_comment
from primespark.core.capture_settings import ListeningSettings

RATE_HZ = 16_000


def numbered(count: int) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """Samples that all differ and that 16 bits hold."""
    return ((np.arange(count) % 60_000 - 30_000) / 32_768).astype(np.float32)


@given(st.integers(1, 20), st.lists(st.integers(0, 30), max_size=10), st.integers(-5, 120), st.integers(-5, 120))
def test_the_ring_holds_the_newest(capacity: int, blocks: list[int], begin: int, end: int) -> None:
    ring, everything = SoundRing(capacity), numbered(sum(blocks))
    done = 0
    for block in blocks:
        ring.append(everything[done : done + block])
        done += block
    kept = list(enumerate(everything.tolist()))[-capacity:]
    assert ring.between(begin, end).tolist() == [sample for number, sample in kept if begin <= number < end]
    assert (ring.begin, ring.end) == (max(done - capacity, 0), done)


@given(
    st.lists(st.integers(1, RATE_HZ), min_size=1, max_size=12), st.sampled_from([(0.5, 0.1), (2.0, 1.0), (1.0, 1.0)])
)
def test_windows_are_the_same_however_the_samples_come(blocks: list[int], sizes: tuple[float, float]) -> None:
    settings = ListeningSettings(window_s=sizes[0], hop_s=sizes[1])
    recording, everything = Recording("desk", settings, 100.0), numbered(sum(blocks))
    windows, done = [], 0
    for block in blocks:
        done += block
        windows += recording.append(everything[done - block : done], 100.0 + done / RATE_HZ)
    size, hop = round(sizes[0] * RATE_HZ), round(sizes[1] * RATE_HZ)
    begins = list(range(0, done - size + 1, hop))
    assert [window.begin for window in windows] == begins
    for window, begin in zip(windows, begins, strict=True):
        np.testing.assert_array_equal(window.samples, everything[begin : begin + size])
        assert window.start_s == pytest.approx(100.0 + begin / RATE_HZ)
        assert window.time_at(window.start_s + 0.5) - window.time == timedelta(seconds=0.5 - sizes[0])


def test_what_is_ahead_of_the_clock_is_known() -> None:
    recording = Recording("desk", ListeningSettings(), 10.0)
    recording.append(numbered(3 * RATE_HZ), 10.5)
    assert recording.ahead_s(10.5) == pytest.approx(2.5)
    assert recording.ahead_s(20.0) == pytest.approx(-7.0)


def test_a_clip_keeps_every_sample_and_its_note() -> None:
    samples = numbered(100_000)
    samples[:2] = (-1.0, 1.0)
    data = encode_flac(samples, comment='{"text": "Tür ☃"}'.encode())
    found, rate = soundfile.read(io.BytesIO(data), dtype="int16")
    assert rate == RATE_HZ
    assert found[:2].tolist() == [-32_768, 32_767]
    np.testing.assert_array_equal(found[2:], samples[2:] * 32_768)
    assert read_flac_comment(data).decode() == '{"text": "Tür ☃"}'


@pytest.mark.parametrize("max_bytes", [200, 10_000, 50_000, 10**6])
def test_a_clip_with_a_bound_is_the_longest_begin_that_fits_nearly(max_bytes: int) -> None:
    samples = np.random.default_rng(1).uniform(-1, 1, 10 * RATE_HZ).astype(np.float32)
    whole, cut = encode_flac(samples), encode_flac(samples, max_bytes)
    assert len(cut) <= max_bytes
    assert len(cut) > 0.5 * min(max_bytes - 150, len(whole))
    found, kept = (soundfile.read(io.BytesIO(data), dtype="int16")[0] for data in (cut, whole))
    np.testing.assert_array_equal(found, kept[: len(found)])


@pytest.mark.parametrize("data", [b"", b"fLaC", b"fLaC" + bytes(200), b"RIFF"])
def test_what_is_no_flac_is_told(data: bytes) -> None:
    with pytest.raises(OSError):
        read_flac_comment(data)
