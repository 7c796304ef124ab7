"""What runs a model: the interface that every kind of processor implements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from primespark.errors import IntegrityError, InvalidInputError

Tensor = NDArray[np.generic]


class InferenceEngine(Protocol):
    """A loaded model; its implementations load in their constructor and may be shared by threads."""

    @property
    def device(self) -> str:
        """Where it runs: `cpu`, `hailo8`, `hailo8l`."""

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the model's order."""

    @property
    def input_shapes(self) -> tuple[tuple[int | None, ...], ...]:
        """Shape of each input; None where the model takes any size."""

    @property
    def input_types(self) -> tuple[np.dtype[Any] | None, ...]:
        """Type of each input's elements, `object` for text; None where it is no array, or of no type numpy has."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""

    @property
    def output_shapes(self) -> tuple[tuple[int | None, ...], ...]:
        """Shape of each output; None where it depends on the inputs."""

    @property
    def output_types(self) -> tuple[np.dtype[Any] | None, ...]:
        """Type of each output's elements, as `input_types`."""

    @property
    def concurrency(self) -> int:
        """Runs that are worth having under way at once, at least 1; more of them only wait for each other."""

    def run(self, inputs: Mapping[str, Tensor]) -> list[NDArray[Any]]:
        """The outputs for `inputs`, in the order of `output_names`.

        Raises:
            InvalidInputError: Code `wrong_model_input`: other names, types or shapes than the model's.
            UnavailableError: Code `inference_failed`: the processor gave up, for one for want of memory;
                `accelerator_unavailable`, `accelerator_timeout`: the accelerator did. No answer is ever an empty one.
            ConflictError: Code `engine_closed`.
        """

    def close(self) -> None:
        """Release the model; runs under way end as if it were open. Closing twice is allowed."""


def are_alike(one: InferenceEngine, other: InferenceEngine) -> bool:
    """Whether two take and give tensors of the same names, types and shapes, in the same order."""
    return _form(one) == _form(other)


def try_model(engine: InferenceEngine, inputs: Mapping[str, Tensor], form: str) -> list[NDArray[Any]]:
    """The outputs of a model just loaded, to see that it is of the form its reader needs.

    Raises:
        IntegrityError: Code `bad_model`: it does not take `inputs`, so it is not `form`.
    """
    try:
        return engine.run(inputs)
    except InvalidInputError as error:
        raise IntegrityError(f"not {form}: {error.message}"[:400], code="bad_model") from None


def _form(engine: InferenceEngine) -> tuple[object, ...]:
    inputs = (engine.input_names, engine.input_types, engine.input_shapes)
    return (*inputs, engine.output_names, engine.output_types, engine.output_shapes)
