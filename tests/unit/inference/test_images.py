"""Image files: what is accepted looks as it should, what is not is refused cheaply."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from primespark.errors import InvalidInputError
from primespark.inference import images
from primespark.inference.images import decode_image
from tests.unit.inference.files import encode, jpeg_header, noise, png_header, webp_header

LIMIT = 25_000_000
PICTURE = noise(6, 9)
PNG = encode(Image.fromarray(PICTURE))
JPEG = encode(Image.fromarray(noise(64, 48)), "JPEG")
WEBP = encode(Image.fromarray(noise(64, 48)), "WEBP")


@pytest.fixture(scope="module", params=["simplejpeg", "pillow"], autouse=True)
def decoder(request: pytest.FixtureRequest) -> Iterator[str]:
    """All that is said of images holds with the extra `edge-cv` and without."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "pillow":
            patch.setitem(sys.modules, "simplejpeg", None)
        else:
            pytest.importorskip("simplejpeg", reason="not installed: pip install 'primespark[edge-cv]'")
        images._simplejpeg.cache_clear()
        assert (images._simplejpeg() is None) == (request.param == "pillow")
        yield request.param
    images._simplejpeg.cache_clear()


def refusal(data: bytes, max_pixels: int = LIMIT) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        decode_image(data, max_pixels)
    assert caught.value.http_status == 422
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("options", [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_files_give_the_exact_pixels(options: tuple[str, dict[str, bool]]) -> None:
    kind, arguments = options
    decoded = decode_image(encode(Image.fromarray(PICTURE), kind, **arguments), LIMIT)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous
    np.testing.assert_array_equal(decoded, PICTURE)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<!doctype html><html><body>404</body></html>", id="html"),
        pytest.param(PNG[: len(PNG) // 2], id="truncated png"),
        pytest.param(PNG[:20], id="png cut in its header"),
        pytest.param(JPEG[: len(JPEG) // 2], id="truncated jpeg"),
        pytest.param(WEBP[: len(WEBP) // 2], id="truncated webp"),
        pytest.param(encode(Image.fromarray(PICTURE), "GIF"), id="gif"),
        pytest.param(encode(Image.fromarray(PICTURE), "TIFF"), id="tiff"),
        pytest.param(encode(Image.fromarray(PICTURE), "BMP"), id="bmp"),
    ],
)
def test_what_is_no_whole_image_of_the_three_formats_is_refused(data: bytes) -> None:
    assert refusal(data).code == "undecodable_image"


def huge_files() -> dict[str, bytes]:
    return {
        "png of 20,000 x 20,000": png_header(20_000, 20_000),
        "png of 6,000 x 6,000": png_header(6_000, 6_000),
        "webp of 16,384 x 16,384": webp_header(16_384, 16_384),
        "sound webp of 6,000 x 6,000": encode(
            Image.new("L", (6_000, 6_000)), "WEBP", lossless=True, quality=0, method=0
        ),
        "jpeg of 65,000 x 65,000": jpeg_header(65_000, 65_000),
        "jpeg of 6,000 x 6,000": jpeg_header(6_000, 6_000),
    }


MEASURE = """
import json, resource, sys, time
from primespark.errors import InvalidInputError
from primespark.inference.images import decode_image

def refuse(data, limit):
    try:
        decode_image(data, limit)
    except InvalidInputError as error:
        return error.code

small, huge = json.load(sys.stdin)
for data in small:
    decode_image(bytes.fromhex(data), 10_000)
answers = {}
for name, data in huge.items():
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    code = refuse(bytes.fromhex(data), 25_000_000)
    seconds = time.process_time() - started
    answers[name] = code, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps(answers))
"""


def test_a_huge_image_costs_neither_time_nor_memory() -> None:
    huge = {name: data.hex() for name, data in huge_files().items()}
    # A small image of each kind first, so that loading the decoders' libraries is not counted.
    asked = json.dumps([[PNG.hex(), JPEG.hex(), WEBP.hex()], huge])
    outcome = subprocess.run([sys.executable, "-c", MEASURE], input=asked, capture_output=True, text=True, check=True)
    answers = json.loads(outcome.stdout)
    assert len(answers) == 6
    for name, (code, seconds, kibibytes) in answers.items():
        assert code == "image_too_large", name
        assert seconds < 0.05, name
        assert kibibytes < 4096, name


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_size_that_pillow_only_warns_of_is_refused() -> None:
    assert refusal(png_header(12_000, 12_000)).code == "image_too_large"


def test_the_limit_itself_is_allowed() -> None:
    assert decode_image(PNG, 54).shape == (6, 9, 3)
    assert refusal(PNG, 53).code == "image_too_large"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animated_image_the_first_frame_is_seen(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(decode_image(data, LIMIT), np.full((8, 8, 3), (255, 0, 0)))


def test_a_palette_is_looked_up() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 10, 200, 30])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(decode_image(encode(image), LIMIT), [[[0, 0, 0], [10, 200, 30]]])


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    image = Image.fromarray(np.array([[0, 256, 0x80FF, 65535]], dtype=np.uint16))
    decoded = decode_image(encode(image), LIMIT)
    np.testing.assert_array_equal(decoded[0, :, 0], [0, 1, 0x80, 255])
    np.testing.assert_array_equal(decoded[..., 0], decoded[..., 2])


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_and_bilevel_become_three_equal_channels(mode: str) -> None:
    image = Image.new(mode, (3, 2), 255)
    np.testing.assert_array_equal(decode_image(encode(image), LIMIT), np.full((2, 3, 3), 255))


def test_transparency_shows_white() -> None:
    pixels = np.array([[[255, 0, 0, 255], [0, 0, 0, 0], [0, 0, 0, 128]]], dtype=np.uint8)
    decoded = decode_image(encode(Image.fromarray(pixels)), LIMIT)
    np.testing.assert_array_equal(decoded, [[[255, 0, 0], [255, 255, 255], [127, 127, 127]]])


def test_a_transparent_palette_entry_shows_white() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    np.testing.assert_array_equal(decode_image(encode(image, transparency=0), LIMIT), [[[255, 255, 255]]])


def test_a_cmyk_jpeg_has_its_colours() -> None:
    # Pure magenta ink on paper: red and blue pass, green does not.
    decoded = decode_image(encode(Image.new("CMYK", (16, 16), (0, 255, 0, 0)), "JPEG", quality=95), LIMIT)
    np.testing.assert_allclose(decoded[8, 8], (255, 0, 255), atol=6)


TURNS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_image_is_turned_as_its_camera_was_held(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(PICTURE), kind, exif=exif, lossless=True)
    np.testing.assert_array_equal(decode_image(data, LIMIT), TURNS[orientation](PICTURE))


@pytest.mark.parametrize("orientation", TURNS)
def test_a_jpeg_is_turned_too(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(noise(64, 48))
    turned = decode_image(encode(image, "JPEG", exif=exif), LIMIT)
    assert turned.flags.c_contiguous
    assert not turned.flags.writeable
    np.testing.assert_array_equal(turned, TURNS[orientation](decode_image(encode(image, "JPEG"), LIMIT)))


JPEG_OPTIONS: list[dict[str, object]] = [
    {"quality": 90},
    {"quality": 40, "subsampling": 2},
    {"quality": 95, "subsampling": 0},
    {"quality": 90, "progressive": True},
    {"quality": 90, "restart_marker_rows": 1},
]


@pytest.mark.parametrize("options", JPEG_OPTIONS, ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_jpeg_has_the_pixels_that_pillow_sees(mode: str, options: dict[str, object]) -> None:
    smooth = Image.fromarray(noise(9, 13)).resize((333, 211), Image.Resampling.BICUBIC).convert(mode)
    data = encode(smooth, "JPEG", **options)
    np.testing.assert_array_equal(decode_image(data, LIMIT), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_of_a_telephone_s_two_pictures_the_first_is_seen() -> None:
    first, second = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    data = encode(first, "MPO", save_all=True, append_images=[second], quality=95)
    np.testing.assert_allclose(decode_image(data, LIMIT), np.full((32, 32, 3), (255, 0, 0)), atol=3)


def test_a_jpeg_with_two_sizes_is_refused() -> None:
    # A second frame header, which says 8 x 8, behind the first.
    place = JPEG.index(b"\xff\xc0")
    length = int.from_bytes(JPEG[place + 2 : place + 4], "big") + 2
    second = bytearray(JPEG[place : place + length])
    second[5:9] = bytes((0, 8, 0, 8))
    assert refusal(JPEG[: place + length] + bytes(second) + JPEG[place + length :]).code == "undecodable_image"


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_senseless_exif_does_not_hide_a_sound_image() -> None:
    data = encode(Image.fromarray(PICTURE), exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    np.testing.assert_array_equal(decode_image(data, LIMIT), PICTURE)


@given(st.sampled_from([PNG, JPEG, WEBP]), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=8))
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(whole: bytes, damage: list[tuple[int, int]]) -> None:
    data = bytearray(whole)
    for place, value in damage:
        data[place % len(data)] = value
    with contextlib.suppress(InvalidInputError):
        assert decode_image(bytes(data), 1_000_000).shape[2:] == (3,)


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\0\1\0\0WEBP"]))
def test_bytes_are_refused(tail: bytes, head: bytes) -> None:
    assert refusal(head + tail, 1_000_000).code in {"undecodable_image", "image_too_large"}
