"""Photographs that come with scikit-image and scikit-learn, as frames for a device that has no camera.

Their folders are found without importing those packages, which would take longer than the first inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from primespark.errors import MissingDependencyError

# Package, folder inside it, files; only what its wheel carries, nothing that has to be fetched first.
_FOLDERS = (
    (
        "skimage",
        "data",
        ("coffee.png", "chelsea.png", "astronaut.png", "camera.png", "rocket.jpg", "motorcycle_left.png"),
    ),
    ("sklearn", "datasets/images", ("china.jpg", "flower.jpg")),
)


def sample_images() -> Iterator[tuple[str, bytes]]:
    """File name and bytes of each sample image, always in the same order.

    Raises:
        MissingDependencyError: Neither package is installed; raised by the call, not by the first image.
    """
    paths = sample_paths()
    return ((path.name, path.read_bytes()) for path in paths)


def sample_paths() -> list[Path]:
    """Where the sample images are.

    Raises:
        MissingDependencyError: Neither package is installed.
    """
    paths = [path for package, folder, names in _FOLDERS for path in _existing(package, folder, names)]
    if not paths:
        raise MissingDependencyError(
            "no sample images: neither scikit-image nor scikit-learn is installed",
            remedy="name a folder of your own in edge.capture.sources",
        )
    return paths


def _existing(package: str, folder: str, names: tuple[str, ...]) -> Iterator[Path]:
    spec = find_spec(package)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        yield from (path for name in names if (path := Path(location) / folder / name).is_file())
