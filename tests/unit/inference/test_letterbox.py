"""The letterbox: the rule of Ultralytics, and a way back for what is found."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from primespark.errors import InvalidInputError
from primespark.inference import letterbox
from primespark.inference.letterbox import PAD_LEVEL, Letterbox, to_nchw
from tests.unit.inference.files import noise

sides = st.integers(1, 8000)
targets = st.integers(1, 1280)
geometries = st.builds(Letterbox, sides, sides, targets, targets)
shares = st.lists(st.floats(0, 1), min_size=4, max_size=4)


@pytest.fixture(params=["opencv", "pillow"])
def resampler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "opencv":
        pytest.importorskip("cv2", reason="OpenCV is not installed: pip install 'primespark[edge-cv]'")
    else:
        # As on a device without the extra `edge-cv`.
        monkeypatch.setitem(sys.modules, "cv2", None)
    letterbox._opencv.cache_clear()
    yield request.param
    letterbox._opencv.cache_clear()


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        # Source and target as (width, height); expected left, top, width, height of the scaled image, by hand.
        ((1920, 1080), (640, 640), (0, 140, 640, 360)),
        ((1280, 720), (640, 640), (0, 140, 640, 360)),
        ((640, 427), (640, 640), (0, 106, 640, 427)),
        ((427, 640), (640, 640), (106, 0, 427, 640)),
        ((600, 400), (640, 640), (0, 106, 640, 427)),
        ((1, 4000), (640, 640), (319, 0, 1, 640)),
        ((4000, 1), (640, 640), (0, 319, 640, 1)),
        ((100, 100), (300, 200), (50, 0, 200, 200)),
        # 2.5 is rounded to the even 2.
        ((2, 5), (5, 5), (1, 0, 2, 5)),
        ((5, 640), (640, 320), (319, 0, 2, 320)),
    ],
)
def test_the_image_lies_where_the_rule_puts_it(
    source: tuple[int, int], target: tuple[int, int], expected: tuple[int, int, int, int]
) -> None:
    found = Letterbox(*source, *target)
    assert (found.left, found.top, found.width, found.height) == expected


@given(geometries)
def test_it_fits_touches_two_borders_and_is_centred(found: Letterbox) -> None:
    right = found.target_width - found.width - found.left
    below = found.target_height - found.height - found.top
    assert 0 <= right - found.left <= 1
    assert 0 <= below - found.top <= 1
    assert found.width == found.target_width or found.height == found.target_height


@given(geometries, st.lists(shares, min_size=1, max_size=5))
def test_what_is_mapped_comes_back_within_half_a_pixel(found: Letterbox, boxes: list[list[float]]) -> None:
    size = (found.source_width, found.source_height)
    places = np.array(boxes) * np.array(size * 2)
    there = found.map(places)
    assert there.shape == places.shape
    np.testing.assert_allclose(found.unmap(there), places, atol=0.5)
    edges = (found.left, found.top, found.left + found.width, found.top + found.height)
    np.testing.assert_allclose(found.map([0, 0, *size]), edges, atol=1e-3)


@given(geometries, st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4))
def test_what_is_unmapped_lies_in_the_image(found: Letterbox, box: list[float]) -> None:
    x_min, y_min, x_max, y_max = found.unmap(box)
    assert 0 <= x_min <= found.source_width
    assert 0 <= x_max <= found.source_width
    assert 0 <= y_min <= found.source_height
    assert 0 <= y_max <= found.source_height


def test_points_and_no_boxes_are_unmapped_too() -> None:
    found = Letterbox(1280, 720, 640, 640)
    np.testing.assert_allclose(found.unmap(np.full((2, 17, 2), 320)), np.full((2, 17, 2), (640, 360)))
    assert found.unmap(np.empty((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("source", [(1280, 720), (333, 500), (640, 640), (1, 4000), (4000, 1), (1, 1), (1000, 3)])
def test_a_used_canvas_is_written_all_over(resampler: str, source: tuple[int, int]) -> None:
    image = np.full((source[1], source[0], 3), (10, 20, 30), dtype=np.uint8)
    found = Letterbox(*source, 640, 480)
    canvas = noise(480, 640)
    assert found.apply(image, out=canvas) is canvas
    inside = np.zeros((480, 640), dtype=bool)
    inside[found.top : found.top + found.height, found.left : found.left + found.width] = True
    assert (canvas[inside] == (10, 20, 30)).all()
    assert (canvas[~inside] == PAD_LEVEL).all()


def test_a_ramp_stays_where_it_is(resampler: str) -> None:
    # Brightness is the column's centre over 8, so any bilinear rule gives the reduced column's centre over 8.
    ramp = np.broadcast_to(((np.arange(1920) + 0.5) / 8)[None, :, None], (1080, 1920, 3)).astype(np.uint8)
    canvas = Letterbox(1920, 1080, 640, 640).apply(ramp)
    expected = (np.arange(640) + 0.5) * 3 / 8
    np.testing.assert_allclose(canvas[320, :, 1], expected, atol=1)


def test_an_image_of_the_right_size_is_copied(resampler: str) -> None:
    image = noise(64, 64)
    canvas = Letterbox(64, 64, 64, 64).apply(image)
    np.testing.assert_array_equal(canvas, image)
    assert not np.shares_memory(canvas, image)


def test_a_view_with_its_channels_turned_is_taken(resampler: str) -> None:
    image = noise(90, 120)
    found = Letterbox(120, 90, 64, 64)
    np.testing.assert_array_equal(found.apply(image[..., ::-1]), found.apply(image)[..., ::-1])


def test_a_canvas_that_opencv_cannot_write_into_is_written_all_the_same(resampler: str) -> None:
    image = noise(90, 120)
    found = Letterbox(120, 90, 64, 64)
    canvas = np.zeros((64, 64, 3), dtype=np.uint8)
    found.apply(image, out=canvas[..., ::-1])
    np.testing.assert_array_equal(canvas[..., ::-1], found.apply(image))


def test_the_canvas_may_be_a_place_of_a_batch(resampler: str) -> None:
    image = noise(90, 120)
    found = Letterbox(120, 90, 64, 64)
    batch = np.zeros((3, 64, 64, 3), dtype=np.uint8)
    found.apply(image, out=batch[1])
    np.testing.assert_array_equal(batch[1], found.apply(image))
    assert not batch[0].any()
    assert not batch[2].any()


def test_the_processor_gets_planes_of_0_to_1() -> None:
    every_level = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    planes = to_nchw(every_level)
    assert planes.dtype == np.float32
    assert planes.flags.c_contiguous
    np.testing.assert_allclose(planes, every_level.transpose(2, 0, 1).astype(np.float64) / 255, atol=6e-8)


def test_planes_are_written_into_a_batch() -> None:
    batch = np.zeros((2, 3, 64, 48), dtype=np.float32)
    image = noise(64, 48)
    to_nchw(image, out=batch[1])
    np.testing.assert_array_equal(batch[1], to_nchw(image))
    assert not batch[0].any()


@pytest.mark.parametrize("source", [(1280, 720), (333, 500), (64, 48), (1, 4000), (1, 1)])
def test_both_steps_at_once_are_both_steps(resampler: str, source: tuple[int, int]) -> None:
    image, other = noise(source[1], source[0]), 255 - noise(source[1], source[0])
    found = Letterbox(*source, 64, 48)
    expected = to_nchw(found.apply(image))
    np.testing.assert_array_equal(found.apply_nchw(image), expected)
    batch = np.full((2, 3, 48, 64), 7, dtype=np.float32)
    scratch = noise(48, 64)
    assert np.shares_memory(found.apply_nchw(other, out=batch[1], scratch=scratch), batch)
    found.apply_nchw(image, out=batch[1], scratch=scratch, has_border=True)
    np.testing.assert_array_equal(batch[1], expected)
    assert (batch[0] == 7).all()


def test_planes_or_scratch_of_another_form_are_refused() -> None:
    found = Letterbox(5, 4, 8, 8)
    for out in (np.zeros((3, 8, 9), np.float32), np.zeros((8, 8, 3), np.float32), np.zeros((3, 8, 8))):
        with pytest.raises(InvalidInputError):
            found.apply_nchw(noise(4, 5), out=out)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError):
        found.apply_nchw(noise(4, 5), scratch=noise(8, 9))
    with pytest.raises(InvalidInputError):
        found.apply_nchw(noise(5, 4))


WRONG: list[NDArray[np.generic]] = [
    np.zeros((4, 5), np.uint8),
    np.zeros((4, 5, 4), np.uint8),
    np.zeros((5, 4, 3), np.uint8),
    np.zeros((4, 5, 3), np.float32),
]


@pytest.mark.parametrize("image", WRONG, ids=lambda image: f"{image.dtype} {image.shape}")
def test_another_image_or_canvas_is_refused(image: NDArray[np.uint8]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Letterbox(5, 4, 8, 8).apply(image)
    assert caught.value.code == "bad_image_array"
    with pytest.raises(InvalidInputError):
        Letterbox(8, 8, 5, 4).apply(noise(8, 8), out=image)


def test_planes_of_another_size_are_refused() -> None:
    with pytest.raises(InvalidInputError):
        to_nchw(noise(8, 8), out=np.zeros((1, 8, 8), np.float32))


@pytest.mark.parametrize("given_sides", [(0, 5, 8, 8), (5, -1, 8, 8), (5, 5, 0, 8), (5, 5, 8, 65_536)])
def test_senseless_sides_are_refused(given_sides: tuple[int, int, int, int]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        Letterbox(*given_sides)
    assert caught.value.code == "bad_image_array"
