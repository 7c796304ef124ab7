"""An engine for tests of what stands around engines: it computes a function, and fails when told to."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import ConflictError, InvalidInputError, PrimeSparkError

Forms = Mapping[str, tuple[type[np.generic], tuple[int | None, ...]]]
Function = Callable[[Mapping[str, NDArray[Any]]], list[NDArray[Any]]]


class FakeEngine:
    """Keeps the contract of `InferenceEngine` with a function of arrays; safe to share between threads.

    Args:
        inputs: Type and shape of each input; None is any length.
        output_names: Names of what the function returns, in order.
        function: The outputs for the inputs; must not keep or change them.
        device: What it says it is.
        concurrency: Runs it lets compute at once; more wait.
        outputs: Type and shape of each output; without it they are float32 [n].
    """

    def __init__(
        self,
        inputs: Forms,
        output_names: tuple[str, ...],
        function: Function,
        *,
        device: str = "cpu",
        concurrency: int = 1,
        outputs: Forms | None = None,
    ) -> None:
        self.device = device
        self.concurrency = concurrency
        self.input_names = tuple(inputs)
        self.input_shapes = tuple(shape for _, shape in inputs.values())
        self.input_types = tuple(np.dtype(kind) for kind, _ in inputs.values())
        self.output_names = output_names
        forms = outputs if outputs is not None else dict.fromkeys(output_names, (np.float32, (None,)))
        self.output_shapes = tuple(forms[name][1] for name in output_names)
        self.output_types = tuple(np.dtype(forms[name][0]) for name in output_names)
        self._inputs = inputs
        self._function = function
        self._failures: deque[PrimeSparkError] = deque()
        self._places = threading.Semaphore(concurrency)
        self._closed = False
        self.runs = 0

    def fail_with(self, *errors: PrimeSparkError) -> None:
        """Let the next runs raise these, one each."""
        self._failures.extend(errors)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """As `InferenceEngine.run`."""
        if self._closed:
            raise ConflictError("the model is closed", code="engine_closed")
        if set(inputs) != set(self._inputs) or not all(self._fits(name, inputs[name]) for name in inputs):
            raise InvalidInputError("the model does not take this input", code="wrong_model_input")
        with self._places:
            self.runs += 1
            if self._failures:
                raise self._failures.popleft()
            return self._function(inputs)

    def close(self) -> None:
        """Refuse further runs."""
        self._closed = True

    def _fits(self, name: str, array: NDArray[Any]) -> bool:
        dtype, shape = self._inputs[name]
        return (
            array.dtype == dtype
            and array.ndim == len(shape)
            and all(want in (None, length) for want, length in zip(shape, array.shape, strict=True))
        )
