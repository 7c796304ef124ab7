"""Digests of what models look at, against their definition."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_agent.input_digest import MAX_PIXEL_BYTES, DigestOf, digest_file, digest_pixels, digest_samples
from edge_agent.sources import frames


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file, "PNG")
    (tmp_path / "a.png").write_bytes(file.getvalue())
    (frame,) = frames(str(tmp_path), 1000)
    digest = frame.see().digest
    assert (digest.sha256, digest.of) == (hashlib.sha256(file.getvalue()).hexdigest(), DigestOf.FILE)
    assert digest == digest_file(file.getvalue())


@given(height=st.integers(1, 40), width=st.integers(1, 40), spot=st.integers(0, 10_000), seed=st.integers(0, 2**32 - 1))
def test_pixels_of_another_shape_or_value_have_another_digest(height: int, width: int, spot: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    digest = digest_pixels(pixels)
    expected = hashlib.sha256(f"{height} {width} 3 1\n".encode() + pixels.tobytes()).hexdigest()
    assert (digest.sha256, digest.of) == (expected, DigestOf.PIXELS)
    assert digest_pixels(np.asfortranarray(pixels)) == digest
    other = pixels.copy()
    other.flat[spot % other.size] ^= 1
    assert digest_pixels(other) != digest
    if height != width:
        assert digest_pixels(pixels.reshape(width, height, 3)) != digest


def test_of_a_large_picture_every_nth_row_is_taken() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1080, 1920, 3), np.uint8)
    digest = digest_pixels(pixels)
    assert -(-pixels.nbytes // MAX_PIXEL_BYTES) == 6
    rows = b"".join(pixels[row].tobytes() for row in range(0, 1080, 6))
    assert (digest.sha256, digest.of) == (hashlib.sha256(b"1080 1920 3 6\n" + rows).hexdigest(), DigestOf.ROWS)
    fits = pixels[: MAX_PIXEL_BYTES // (1920 * 3)]
    assert digest_pixels(fits).of is DigestOf.PIXELS


def test_sound_is_known_by_its_samples() -> None:
    samples = np.random.default_rng(1).standard_normal(100, np.float32)
    digest = digest_samples(samples)
    expected = hashlib.sha256(b"".join(value.astype("<f4").tobytes() for value in samples)).hexdigest()
    assert (digest.sha256, digest.of) == (expected, DigestOf.SAMPLES)
    assert digest_samples(samples[::2]) != digest
