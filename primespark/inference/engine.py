"""What runs a model: the interface that every kind of processor implements."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

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
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""

    def run(self, inputs: Mapping[str, Tensor]) -> list[NDArray[Any]]:
        """The outputs for `inputs`, in the order of `output_names`.

        Raises:
            InvalidInputError: Code `wrong_model_input`: other names, types or shapes than the model's.
            UnavailableError: Code `inference_failed`: the processor gave up, for one for want of memory.
            ConflictError: Code `engine_closed`.
        """

    def close(self) -> None:
        """Release the model; runs under way end as if it were open. Closing twice is allowed."""
