"""The data sets of the digit reader: which scanned digits devices may send, and which are held back to judge models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from primespark.inference.digits import digit_features, encode_digit_png

DATASET = "digits"
CLASSES = tuple(str(digit) for digit in range(10))
HELD_BACK_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """Model inputs, float32 [n, 64], with their labels, int64 [n]."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def held_back_split(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Indices into scikit-learn's 1,797 digits: 1,078 that devices may send and 719 that never leave the evaluation.

    Stratified, because in file order the last writers are strangers to the first and every figure is lower.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    _, labels = load_digits(return_X_y=True)
    sent, held_back = train_test_split(
        np.arange(len(labels), dtype=np.int64), test_size=HELD_BACK_SHARE, random_state=seed, stratify=labels
    )
    return sent, held_back


def held_back_digits(seed: int) -> LabelledFeatures:
    """The digits that judge a model, through the same PNG and the same preprocessing as those of a device."""
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    _, held_back = held_back_split(seed)
    features = [digit_features(encode_digit_png(pixels[index].reshape(8, 8))) for index in held_back]
    return LabelledFeatures(np.stack(features).astype(np.float32), labels[held_back].astype(np.int64))
