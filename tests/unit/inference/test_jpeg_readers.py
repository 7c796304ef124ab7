"""Pillow reads the header of a JPEG file and simplejpeg its pixels: where they differ, neither is believed."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from primespark.errors import InvalidInputError
from primespark.inference import images
from tests.unit.inference.files import encode, noise


def test_a_file_of_which_they_see_different_sizes_is_refused() -> None:
    simplejpeg = pytest.importorskip("simplejpeg", reason="not installed: pip install 'primespark[edge-cv]'")
    wide, high = (encode(Image.fromarray(noise(*size)), "JPEG") for size in ((48, 64), (64, 48)))
    with pytest.raises(InvalidInputError) as caught:
        images._decode_jpeg(simplejpeg, high, Image.open(io.BytesIO(wide)))
    assert caught.value.code == "undecodable_image"
