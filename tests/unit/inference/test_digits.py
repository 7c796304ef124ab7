"""The digit reader's preprocessing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from primespark.errors import InvalidInputError
from primespark.inference.digits import digit_features, digit_features_of, encode_digit_png
from tests.unit.inference.files import encode

SCANS = arrays(np.float64, (8, 8), elements=st.integers(0, 16).map(float))


@given(SCANS)
def test_the_way_through_a_png_is_exact(scan: NDArray[np.float64]) -> None:
    features = digit_features(encode_digit_png(scan))
    assert features.dtype == np.float32
    np.testing.assert_array_equal(features, (scan / 16).astype(np.float32).ravel())


def test_every_digit_of_scikit_learn_survives() -> None:
    pixels, _ = load_digits(return_X_y=True)
    features = np.stack([digit_features(encode_digit_png(row.reshape(8, 8))) for row in pixels])
    np.testing.assert_array_equal(features, (pixels / 16).astype(np.float32))


def test_the_png_is_eight_bit_grey_with_fifteen_levels_a_value() -> None:
    image = Image.open(io.BytesIO(encode_digit_png(np.arange(64).reshape(8, 8) / 63 * 16)))
    assert (image.format, image.mode, image.size) == ("PNG", "L", (8, 8))
    assert np.asarray(image).max() == 240


@pytest.mark.parametrize(
    "scan", [np.full((8, 8), 16.1), np.full((8, 8), -1.0), np.zeros((8, 7)), np.full((8, 8), np.nan)]
)
def test_what_is_no_scan_is_refused(scan: NDArray[np.float64]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        encode_digit_png(scan)
    assert caught.value.code == "bad_digit"


@given(SCANS, st.integers(1, 5))
def test_an_enlarged_digit_has_the_same_features(scan: NDArray[np.float64], times: int) -> None:
    grey = (scan * 15).astype(np.uint8).repeat(times, axis=0).repeat(times, axis=1)
    np.testing.assert_array_equal(digit_features_of(grey), (scan / 16).astype(np.float32).ravel())


@given(SCANS)
def test_grey_and_rgb_are_the_same(scan: NDArray[np.float64]) -> None:
    grey = (scan * 15).astype(np.uint8)
    np.testing.assert_array_equal(digit_features_of(grey), digit_features_of(np.stack([grey] * 3, axis=2)))


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (640, 427)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_any_image_gives_features_in_range(size: tuple[int, int], kind: str) -> None:
    features = digit_features(encode(Image.new("RGB", size, "white"), kind))
    assert features.shape == (64,)
    np.testing.assert_allclose(features, 1.0, atol=0.01)
    assert features.max() <= 1.0


def test_a_reduced_image_is_the_mean_of_its_blocks() -> None:
    grey = np.random.default_rng(3).integers(0, 241, (32, 32), dtype=np.uint8)
    means = grey.reshape(8, 4, 8, 4).mean(axis=(1, 3)).ravel() / 15 / 16
    # Rows and columns are averaged one after the other, each rounded to a whole level.
    np.testing.assert_allclose(digit_features_of(grey), means, atol=1.1 / 240)
