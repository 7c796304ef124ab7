"""The digits the demo's cameras see: small PNG frames with a list of labels, as a person would leave them."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from primespark.inference.digits import encode_digit_png

FIRST_LABELS = 60


@dataclass(frozen=True, slots=True)
class Digit:
    """One scanned digit."""

    sample: str
    label: str
    png: bytes


def load_demo_digits(seed: int) -> tuple[list[Digit], list[Digit], list[Digit]]:
    """The first labelled digits, the remaining ones, and those held back for evaluation, which are never sent."""
    # Imported while everything starts: it takes more than a second.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    from primespark.ml.datasets import held_back_split

    images, labels = load_digits(return_X_y=True)
    sent, held_back = held_back_split(seed)
    first, remaining = train_test_split(sent, train_size=FIRST_LABELS, random_state=seed, stratify=labels[sent])
    return _digits(images, labels, first), _digits(images, labels, remaining), _digits(images, labels, held_back)


def _digits(images: NDArray[np.float64], labels: NDArray[np.int64], indices: NDArray[np.int64]) -> list[Digit]:
    return [
        Digit(f"digit-{index:04d}", str(labels[index]), encode_digit_png(images[index].reshape(8, 8)))
        for index in indices
    ]


def leave_in_folder(folder: Path, digits: list[Digit]) -> None:
    """Add frames to a labelled folder; a frame is complete before the list names it."""
    folder.mkdir(parents=True, exist_ok=True)
    for digit in digits:
        (folder / f"{digit.sample}.png").write_bytes(digit.png)
    listing = folder / "labels.csv"
    lines = listing.read_text(encoding="utf-8") if listing.exists() else "file,label\n"
    added = io.StringIO()
    csv.writer(added, lineterminator="\n").writerows((f"{digit.sample}.png", digit.label) for digit in digits)
    staged = listing.with_suffix(".staged")
    staged.write_text(lines + added.getvalue(), encoding="utf-8")
    staged.replace(listing)
