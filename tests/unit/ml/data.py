"""Digits as labels, and blobs in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from primespark.core.identifiers import sha256_hex
from primespark.inference.digits import encode_digit_png
from primespark.ml.datasets import held_back_split

SEED = 20260101


@dataclass(frozen=True)
class Row:
    sample: str
    label: str
    image_png: bytes


@dataclass
class MemoryBlobs:
    data: dict[str, bytes] = field(default_factory=dict)

    def put(self, data: bytes) -> str:
        name = sha256_hex(data)
        self.data[name] = data
        return name

    def get(self, sha256: str) -> bytes:
        return self.data[sha256]


@cache
def digit_rows(count: int) -> list[Row]:
    """The first `count` digits that devices may send, all classes among them."""
    images, labels = load_digits(return_X_y=True)
    sent, _ = held_back_split(SEED)
    if count < len(sent):
        sent, _ = train_test_split(sent, train_size=count, random_state=SEED, stratify=labels[sent])
    return [
        Row(f"digit-{index:04d}", str(labels[index]), encode_digit_png(images[index].reshape(8, 8))) for index in sent
    ]
