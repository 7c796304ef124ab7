"""Arrays as bytes for blobs: `.npz` without pickle, and the same arrays always give the same bytes."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError


def pack(**arrays: NDArray[Any]) -> bytes:
    """Named arrays in one file.

    Raises:
        ValueError: An array of Python objects, which only a pickle could hold.
    """
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in sorted(arrays.items()):
            member = io.BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
            # A ZipInfo made by hand bears no time of day.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getvalue())
    return file.getvalue()


def unpack(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays in `data` by name.

    Raises:
        IntegrityError: Code `bad_arrays`: not such a file, or one that holds pickled objects.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise IntegrityError(f"not a file of arrays: {error}", code="bad_arrays") from None
