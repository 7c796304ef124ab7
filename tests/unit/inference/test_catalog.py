"""The bundled models are the pinned ones, and the page beside them says so."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from primespark.errors import IntegrityError, NotFoundError
from primespark.inference import catalog
from primespark.inference.catalog import BUNDLED, BundledModel

FOLDER = Path(catalog.__file__).parents[1] / "_data" / "models"


@pytest.mark.parametrize("model", BUNDLED, ids=lambda model: model.name)
def test_a_bundled_file_is_the_pinned_one(model: BundledModel) -> None:
    path = catalog.read(model)
    assert path == FOLDER / model.file
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256
    assert catalog.read_bytes(model) == path.read_bytes()
    assert catalog.find(model.name) is model


def test_every_file_is_in_the_catalog_and_on_the_page() -> None:
    assert {path.name for path in FOLDER.glob("*.onnx")} == {model.file for model in BUNDLED}
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for model in BUNDLED:
        [row] = [line for line in page.splitlines() if line.startswith(f"| {model.file} |")]
        assert model.sha256 in row
        assert model.licence in row


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(NotFoundError) as caught:
        catalog.find("yolo")
    assert "coco-ssd" in caught.value.remedy


def test_another_file_than_the_pinned_one_is_refused() -> None:
    model = dataclasses.replace(catalog.find("silero-vad"), sha256="0" * 64)
    for read in (catalog.read, catalog.read_bytes):
        with pytest.raises(IntegrityError) as caught:
            read(model)
        assert caught.value.code == "bad_model"


def test_a_missing_file_is_refused() -> None:
    with pytest.raises(IntegrityError, match="cannot be read"):
        catalog.read(dataclasses.replace(catalog.find("silero-vad"), file="absent.onnx"))


def test_detector_labels_have_the_gaps_of_coco() -> None:
    labels = catalog.read_labels("coco90.txt")
    assert len(labels) == 80
    assert (labels[1], labels[47], labels[90]) == ("person", "cup", "toothbrush")
    assert 12 not in labels
