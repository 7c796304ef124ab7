"""Audio files: what is accepted sounds as it should, what is not is refused cheaply."""

from __future__ import annotations

import contextlib
import struct
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.errors import InvalidInputError, MissingDependencyError
from primespark.inference.audio import SAMPLE_RATE_HZ, decode_audio, resample
from tests.unit.inference.sounds import encode_audio, tone

WAV = encode_audio(tone(0.25), SAMPLE_RATE_HZ)
FLAC = encode_audio(tone(0.25), SAMPLE_RATE_HZ, "FLAC")
OGG = encode_audio(tone(0.25), SAMPLE_RATE_HZ, "OGG", "VORBIS")
WHOLE = {"wav": WAV, "flac": FLAC, "ogg": OGG}


def refusal(data: bytes, max_seconds: float = 60) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        decode_audio(data, max_seconds)
    assert caught.value.http_status == 422
    assert caught.value.remedy
    return caught.value


def wav_header(rate_hz: int, channels: int, data_bytes: int, body: bytes = b"") -> bytes:
    frame = channels * 2
    form = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * frame % 2**32, frame % 2**16, 16)
    return (
        b"RIFF" + struct.pack("<I", (36 + data_bytes) % 2**32) + b"WAVEfmt " + struct.pack("<I", 16) + form
        + b"data" + struct.pack("<I", data_bytes) + body
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_lossless_files_give_the_exact_samples(kind: str) -> None:
    levels = np.array([0, 1, -1, 16384, 32767, -32768], dtype=np.int16).repeat(100)
    decoded = decode_audio(encode_audio((levels / 32768).astype(np.float32), SAMPLE_RATE_HZ, kind, "PCM_16"), 60)
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded, levels / np.float32(32768))


def test_a_lossy_file_sounds_alike() -> None:
    decoded = decode_audio(OGG, 60)
    assert len(decoded) == len(tone(0.25))
    assert np.corrcoef(decoded, tone(0.25))[0, 1] > 0.99


def test_channels_are_averaged() -> None:
    stereo = np.stack([np.full(1000, 0.5, np.float32), np.full(1000, -0.25, np.float32)], axis=1)
    np.testing.assert_allclose(decode_audio(encode_audio(stereo, SAMPLE_RATE_HZ, subtype="FLOAT"), 60), 0.125)


@pytest.mark.parametrize("rate_hz", [8_000, 22_050, 44_100, 48_000, 192_000])
def test_another_rate_is_resampled(rate_hz: int) -> None:
    decoded = decode_audio(encode_audio(tone(2.5, rate_hz), rate_hz, subtype="FLOAT"), 60)
    assert len(decoded) == pytest.approx(2.5 * SAMPLE_RATE_HZ, abs=1)
    inside = slice(1000, -1000)
    # The same sound, made at the new rate; the filter is a hundred decibels below.
    np.testing.assert_allclose(decoded[:40_000][inside], tone(2.5)[: len(decoded)][inside], atol=1e-4)


def test_what_lies_above_half_the_rate_is_filtered_out() -> None:
    assert np.abs(resample(tone(1, 48_000, hz=12_000), 48_000)[500:-500]).max() < 1e-3


def test_samples_stay_within_full_scale() -> None:
    loud = np.sign(tone(0.5, 48_000)) * np.float32(3)
    for rate_hz in (SAMPLE_RATE_HZ, 48_000):
        decoded = decode_audio(encode_audio(loud, rate_hz, subtype="FLOAT"), 60)
        assert np.abs(decoded).max() == 1


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<!doctype html>", id="html"),
        pytest.param(WAV[:20], id="wav cut in its header"),
        pytest.param(wav_header(SAMPLE_RATE_HZ, 1, 0), id="wav without samples"),
        pytest.param(wav_header(SAMPLE_RATE_HZ, 0, 100, bytes(100)), id="no channels"),
        pytest.param(wav_header(0, 1, 100, bytes(100)), id="no rate"),
        pytest.param(wav_header(2_000_000_000, 1, 100, bytes(100)), id="two gigahertz"),
        pytest.param(FLAC[: len(FLAC) // 2], id="truncated flac"),
        pytest.param(OGG[:40], id="ogg cut in its header"),
        pytest.param(encode_audio(tone(0.1), SAMPLE_RATE_HZ, "AIFF"), id="aiff"),
        pytest.param(encode_audio(tone(0.1), SAMPLE_RATE_HZ, "AU"), id="au"),
        pytest.param(encode_audio(np.full(100, np.nan, np.float32), SAMPLE_RATE_HZ, subtype="FLOAT"), id="nan"),
        pytest.param(encode_audio(np.full(100, np.inf, np.float32), SAMPLE_RATE_HZ, subtype="FLOAT"), id="infinite"),
    ],
)
def test_what_is_no_whole_sound_of_the_three_formats_is_refused(data: bytes) -> None:
    assert refusal(data).code == "undecodable_audio"


def test_a_recording_that_was_cut_off_gives_what_it_has() -> None:
    cut = WAV[: len(WAV) // 2]
    assert len(decode_audio(cut, 60)) == (len(cut) - 44) // 2
    noise = np.random.default_rng(3).uniform(-0.5, 0.5, 5 * SAMPLE_RATE_HZ).astype(np.float32)
    whole = encode_audio(noise, SAMPLE_RATE_HZ, "OGG", "VORBIS")
    assert 0 < len(decode_audio(whole[: len(whole) * 3 // 4], 60)) < len(noise)


def test_a_recorder_that_never_wrote_the_length_is_read_to_the_end() -> None:
    streamed = wav_header(SAMPLE_RATE_HZ, 1, 2**32 - 1, bytes(2000))
    assert len(decode_audio(streamed, 60)) == 1000


@pytest.mark.parametrize("kind", WHOLE)
def test_the_limit_itself_is_allowed(kind: str) -> None:
    assert len(decode_audio(WHOLE[kind], 0.25)) == 4000
    assert refusal(WHOLE[kind], 0.2499).code == "audio_too_long"


def test_a_long_file_is_refused_by_its_header() -> None:
    # An hour of silence in 20 kB.
    hour = encode_audio(np.zeros(3600 * 1000, np.float32), 1000, "FLAC")
    assert refusal(hour).message == "audio of 3600.0 s, limit 60 s"


def test_a_length_the_header_leaves_open_is_bounded_all_the_same() -> None:
    hour = bytearray(encode_audio(np.zeros(3600 * 1000, np.float32), 1000, "FLAC"))
    # STREAMINFO: 36 bits of the number of samples; 0 stands for unknown.
    assert hour[:4] == b"fLaC"
    hour[21] &= 0xF0
    hour[22:26] = bytes(4)
    assert refusal(bytes(hour)).message == "audio of more than 60 s, limit 60 s"


def test_without_the_decoder_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(MissingDependencyError) as caught:
        decode_audio(WAV, 60)
    assert "make extra-edge" in caught.value.remedy


@pytest.mark.parametrize("rate_hz", [0, -1, 400_000])
def test_senseless_rates_are_refused(rate_hz: int) -> None:
    with pytest.raises(InvalidInputError):
        resample(tone(0.1), rate_hz)


@given(st.sampled_from([WAV, FLAC, OGG]), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8))
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(whole: bytes, damage: list[tuple[int, int]]) -> None:
    data = bytearray(whole)
    for place, value in damage:
        data[place % len(data)] = value
    with contextlib.suppress(InvalidInputError):
        decoded = decode_audio(bytes(data), 60)
        assert decoded.ndim == 1
        assert np.abs(decoded).max() <= 1


@given(st.binary(max_size=200), st.sampled_from([b"", WAV[:44], FLAC[:42], OGG[:58]]))
def test_any_bytes_are_decoded_or_refused_and_nothing_else(data: bytes, start: bytes) -> None:
    with contextlib.suppress(InvalidInputError):
        decode_audio(start + data, 60)
