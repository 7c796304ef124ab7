"""Image files into arrays: three formats, bounded by what their header says before a pixel is decoded.

Pillow reads every header, and the pixels of all but one kind: JPEG is decoded by simplejpeg where it is installed (the
extra `edge-cv`), in half the time and to the same pixels. OpenCV decodes none: for JPEG it is slower.
"""

from __future__ import annotations

import io
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from primespark.errors import InvalidInputError

FORMATS = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
# MPO is a JPEG file with more pictures behind the first, as many telephones write it.
_JPEG = ("JPEG", "MPO")
_FAST_MODES = ("RGB", "L")
_ORIENTATION = 0x0112
# What Pillow's decoders and its reading of EXIF raise on damaged files.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    ZeroDivisionError,
    struct.error,
    zlib.error,
)


def decode_image(data: bytes, max_pixels: int) -> NDArray[np.uint8]:
    """The image of a PNG, JPEG or WebP file as a person sees it: upright, transparency over white, first frame.

    Args:
        data: The file's bytes.
        max_pixels: Most pixels (width x height) the header may announce.

    Returns:
        uint8 [height, width, 3], RGB; read-only.

    Raises:
        InvalidInputError: Code `undecodable_image`, or `image_too_large` before anything is decoded.
    """
    try:
        with _open(data) as image:
            if image.width * image.height > max_pixels:
                raise _too_large(f"{image.width} x {image.height} pixels", max_pixels)
            if image.format in _JPEG and image.mode in _FAST_MODES and (simplejpeg := _simplejpeg()) is not None:
                return _decode_jpeg(simplejpeg, data, image)
            return np.asarray(_as_rgb(_upright(image)), dtype=np.uint8)
    except InvalidInputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("far more pixels", max_pixels) from None
    except _DAMAGED as error:
        raise _undecodable(f"damaged image: {str(error)[:120] or type(error).__name__}") from None


def _open(data: bytes) -> Image.Image:
    if not data:
        raise _undecodable("empty image")
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise _undecodable("not a PNG, JPEG or WebP image") from None


def _decode_jpeg(simplejpeg: Any, data: bytes, header: Image.Image) -> NDArray[np.uint8]:
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if (width, height) != header.size:
        # Two readers that differ on the size leave neither trusted.
        raise _undecodable("damaged image: it has two sizes")
    pixels = np.ascontiguousarray(_turned(simplejpeg.decode_jpeg(data, colorspace="RGB"), _orientation(header)))
    pixels.setflags(write=False)
    return pixels


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGED:
        return 1


def _turned(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """A view as a person sees it; the numbers are those of EXIF: from 5 on, rows are columns."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


@cache
def _simplejpeg() -> Any:
    """The faster decoder, or None where it is not installed."""
    try:
        import simplejpeg
    except ImportError:
        return None
    return simplejpeg


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except _DAMAGED:
        # The pixels are sound; only the note on how the camera was held is not.
        return image


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255, which turns most of an image white.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB")
    return image.convert("RGB")


def _too_large(found: str, max_pixels: int) -> InvalidInputError:
    return InvalidInputError(
        f"image of {found}, limit {max_pixels} pixels", remedy="send a smaller image", code="image_too_large"
    )


def _undecodable(cause: str) -> InvalidInputError:
    return InvalidInputError(cause, remedy="send a whole PNG, JPEG or WebP file", code="undecodable_image")
