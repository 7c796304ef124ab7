"""Image files into arrays: three formats, bounded by what their header says before a pixel is decoded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from primespark.errors import InvalidInputError

FORMATS = ("PNG", "JPEG", "WEBP")
MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")
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
