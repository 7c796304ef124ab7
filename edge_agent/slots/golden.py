"""A version is asked something before it serves: what its manifest knows the answer to, else anything at all."""

from __future__ import annotations

import base64
import binascii
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.core.manifests import GoldenInput, Manifest, TensorForm
from primespark.errors import IntegrityError, InvalidInputError
from primespark.inference.engine import InferenceEngine
from primespark.inference.images import decode_image
from primespark.inference.models import InputKind, ServedModel

_PROBE_SIDE = 64
_PROBE_SAMPLES = 16_000
_PROBE_FEATURES = 1
_MOST_FEATURES = 10_000


def golden_array(manifest: Manifest, model: ServedModel, max_pixels: int) -> NDArray[Any]:
    """The manifest's golden input; a plain one of the model's kind where it has none.

    Raises:
        IntegrityError: Code `bad_manifest`: it is no image.
    """
    if manifest.golden is None:
        return _plain_input(model)
    if model.input_kind is not InputKind.IMAGE:
        raise IntegrityError(f"an image as golden input of a {model.model_type} model", code="bad_manifest")
    try:
        image = base64.b64decode(manifest.golden.image_png_base64, validate=True)
        return decode_image(image, max_pixels)
    except (binascii.Error, InvalidInputError):
        raise IntegrityError("the golden input is not an image in base64", code="bad_manifest") from None


def check_golden(golden: GoldenInput | None, model: ServedModel, given: NDArray[Any]) -> None:
    """Nothing, if a model answers its golden input rightly, or any input at all where there is none.

    Raises:
        IntegrityError: Code `golden_mismatch`.
        PrimeSparkError: As `ServedModel.predict`.
    """
    answer = model.predict(given)
    label = answer[0].get("label") if answer else None
    if golden is not None and label != golden.label:
        raise IntegrityError(f"the golden input got {label!r}, not {golden.label!r}", code="golden_mismatch")


def check_forms(manifest: Manifest, engine: InferenceEngine) -> None:
    """Nothing, if a graph takes and gives what its manifest says, or its manifest says nothing.

    Raises:
        IntegrityError: Code `wrong_shape`.
    """
    sides = (
        ("input", manifest.inputs, engine.input_names, engine.input_types, engine.input_shapes),
        ("output", manifest.outputs, engine.output_names, engine.output_types, engine.output_shapes),
    )
    for side, promised, names, types, shapes in sides:
        if promised is None:
            continue
        found = {
            name: (str(type_) if type_ is not None else "none", shape)
            for name, type_, shape in zip(names, types, shapes, strict=True)
        }
        told = {form.name: (form.type, form.shape) for form in promised}
        if len(told) != len(promised) or found != told:
            raise IntegrityError(_difference(side, promised, found), code="wrong_shape")


def _difference(side: str, promised: tuple[TensorForm, ...], found: dict[str, Any]) -> str:
    told = ", ".join(f"{form.name} {form.type} {list(form.shape)}" for form in promised)
    real = ", ".join(f"{name} {type_} {list(shape)}" for name, (type_, shape) in found.items())
    return f"{side}s of the graph are {real}; the manifest says {told}"[:400]


def _plain_input(model: ServedModel) -> NDArray[Any]:
    match model.input_kind:
        case InputKind.IMAGE:
            return np.full((_PROBE_SIDE, _PROBE_SIDE, 3), 128, np.uint8)
        case InputKind.AUDIO:
            return np.zeros(_PROBE_SAMPLES, np.float32)
    features = model.engine.input_shapes[0][-1] if model.engine.input_shapes[0] else None
    return np.zeros((1, min(features or _PROBE_FEATURES, _MOST_FEATURES)), np.float32)
