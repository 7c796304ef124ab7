"""HEF files, as the vendor's package of models brings them: what each is, where it runs, what it can serve."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from primespark.errors import IntegrityError
from primespark.inference.catalog import ModelType
from primespark.inference.hailo_classification import is_classifier
from primespark.inference.hailo_hef import HefNetwork, read_header, read_network, runs_on
from primespark.inference.hailo_pose import count_points, find_heads

MAX_FILES = 200
MAX_FILE_BYTES = 1024**3
CHIPS = ("hailo8", "hailo8l")


@dataclass(frozen=True, slots=True)
class VendorModel:
    """One HEF file; where it has a problem, nothing but its path and size is known.

    Attributes:
        path: The file.
        size_bytes: Its size.
        sha256: Its digest, in hexadecimal.
        architecture: What it is compiled for.
        compiler: Version of the compiler; empty when it does not say.
        network: Name of its network, of several joined by commas; empty when it does not say.
        model_type: What it can be offered as, by its form: a detector, which ends in one suppression; a model of poses,
            which ends in the heads of YOLOv8-pose; a classifier, with one vector for an image. What the values of a
            vector mean is not in the file.
        labels: How many it needs of its classes or points.
        problem: Why it cannot be used; empty when it can.
    """

    path: Path
    size_bytes: int = 0
    sha256: str = ""
    architecture: str = ""
    compiler: str = ""
    network: str = ""
    model_type: ModelType | None = None
    labels: int | None = None
    problem: str = ""

    @property
    def chips(self) -> tuple[str, ...]:
        """The chips of ours it runs on."""
        return tuple(chip for chip in CHIPS if runs_on(self.architecture, chip))


def find_hefs(folder: Path) -> tuple[VendorModel, ...]:
    """The HEF files in a folder by name, the broken ones with their problem; at most `MAX_FILES` are looked at.

    No subfolders, and nothing where there is no such folder. Reads each file once, for its digest.
    """
    return tuple(_describe(path) for path in sorted(islice(_files(folder), MAX_FILES)))


def _files(folder: Path) -> Iterator[Path]:
    try:
        # A pipe or a device of that name would never end.
        yield from (path for path in folder.glob("*.hef") if path.is_file())
    except OSError:
        return


def _describe(path: Path) -> VendorModel:
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            return VendorModel(path, size, problem=f"larger than {MAX_FILE_BYTES >> 20} MiB")
        return _described(path, size)
    except OSError as error:
        return VendorModel(path, problem=f"cannot be read: {error.strerror}")


def _described(path: Path, size: int) -> VendorModel:
    try:
        header, network = read_header(path), read_network(path)
    except IntegrityError as error:
        return VendorModel(path, size, problem=error.message)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    model_type, labels = offered_as(network) or (None, None)
    names = ", ".join(network.names)
    return VendorModel(path, size, digest, header.architecture, header.compiler, names, model_type, labels)


def offered_as(network: HefNetwork) -> tuple[ModelType, int] | None:
    """The type of model a network can be, with how many labels; None where it is none of those read here."""
    if network.box_classes:
        return ModelType.OBJECT_DETECTION, network.box_classes
    if network.shapes is None:
        return None
    takes, gives = network.shapes.takes, network.shapes.gives
    heads = find_heads(takes, gives)
    if heads is not None:
        return ModelType.POSE, count_points(heads, gives)
    if is_classifier(takes, gives):
        return ModelType.CLASSIFICATION, max(gives[0])
    return None
