"""The sample images, found without importing the packages that carry them."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import pytest

from primespark.errors import MissingDependencyError
from primespark.inference import samples
from primespark.inference.images import decode_image


def test_each_sample_is_a_real_photograph_by_name() -> None:
    found = dict(samples.sample_images())
    assert list(found) == [
        "coffee.png",
        "chelsea.png",
        "astronaut.png",
        "camera.png",
        "rocket.jpg",
        "motorcycle_left.png",
        "china.jpg",
        "flower.jpg",
    ]
    shapes = {name: decode_image(data, 1_000_000).shape for name, data in found.items()}
    assert shapes["coffee.png"] == (400, 600, 3)
    assert shapes["china.jpg"] == (427, 640, 3)


def test_without_the_packages_the_call_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        samples.sample_images()
    assert "edge.capture.sources" in caught.value.remedy


def test_without_scikit_image_those_of_scikit_learn_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "find_spec", lambda name: None if name == "skimage" else find_spec(name))
    assert [name for name, _ in samples.sample_images()] == ["china.jpg", "flower.jpg"]


HEAVY = (
    "skimage",
    "sklearn",
    "scipy",
    "pandas",
    "cv2",
    "onnx",
    "skl2onnx",
    "sqlalchemy",
    "fastapi",
    "dagster",
    "mlflow",
)


def test_serving_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from primespark.inference import catalog, digits, images, models, samples\n"
        "assert len(list(samples.sample_images())) == 8\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    outcome = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert outcome.stdout.strip() == "[]"
