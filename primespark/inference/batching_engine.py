"""Micro-batches: runs that come at once go through a model together, where it takes any number of inputs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import PrimeSparkError
from primespark.inference.engine import InferenceEngine, Tensor

_Key = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class Batching:
    """How runs share batches: at most `size` rows, which wait for each other up to `wait_s`; 1 row is no batch."""

    size: int = 1
    wait_s: float = 0.0

    def around(self, engine: InferenceEngine) -> InferenceEngine:
        """`engine`, sharing runs where that is wanted."""
        return engine if self.size == 1 else BatchingEngine(engine, self.size, self.wait_s)


NO_BATCHES = Batching()


class BatchingEngine:
    """An engine whose callers share runs; safe to share between threads, and of use only when several do.

    The first caller leads: it waits for its turn at the engine, then up to `wait_s` for others whose inputs have the
    same shape behind the first dimension, runs all, and shares out the rows. Where that fails, or the model's outputs
    have no row for each input, each runs alone: nobody gets another one's error.

    Args:
        engine: The first dimension of its inputs is free; else every run goes to it as it is.
        size: Most rows of a run.
        wait_s: Longest wait for others, once the engine is free.
    """

    def __init__(self, engine: InferenceEngine, size: int, wait_s: float) -> None:
        self._engine = engine
        self._size = size
        self._wait_s = wait_s
        self._is_free = bool(engine.input_shapes) and all(shape[:1] == (None,) for shape in engine.input_shapes)
        self._turns = threading.BoundedSemaphore(engine.concurrency)
        self._changed = threading.Condition()
        self._open: dict[_Key, _Batch] = {}

    @property
    def device(self) -> str:
        """The engine's, as the names and shapes below."""
        return self._engine.device

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return self._engine.input_names

    @property
    def input_shapes(self) -> tuple[tuple[int | None, ...], ...]:
        """Shapes of the inputs."""
        return self._engine.input_shapes

    @property
    def input_types(self) -> tuple[np.dtype[Any] | None, ...]:
        """Types of the inputs."""
        return self._engine.input_types

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return self._engine.output_names

    @property
    def output_shapes(self) -> tuple[tuple[int | None, ...], ...]:
        """Shapes of the outputs."""
        return self._engine.output_shapes

    @property
    def output_types(self) -> tuple[np.dtype[Any] | None, ...]:
        """Types of the outputs."""
        return self._engine.output_types

    @property
    def concurrency(self) -> int:
        """Callers that fill a batch for each run the engine has under way."""
        return self._engine.concurrency * (self._size if self._is_free else 1)

    def run(self, inputs: Mapping[str, Tensor]) -> list[NDArray[Any]]:
        """As `InferenceEngine.run`."""
        rows = _rows(inputs)
        if not self._is_free or rows is None or rows >= self._size or set(inputs) != set(self.input_names):
            return self._engine.run(inputs)
        batch, place = self._joined(inputs, rows)
        if place == 0:
            return self._led(batch)
        batch.done.wait()
        if batch.outputs is None:
            return self._engine.run(inputs)
        return batch.share(batch.outputs, place)

    def close(self) -> None:
        """Release the engine; runs under way end as if it were open."""
        self._engine.close()

    def _joined(self, inputs: Mapping[str, Tensor], rows: int) -> tuple[_Batch, int]:
        """The batch these inputs are in, and their place there; the first leads."""
        key = tuple((name, given.dtype.str, given.shape[1:]) for name, given in sorted(inputs.items()))
        with self._changed:
            batch = self._open.get(key)
            if batch is None or batch.rows + rows > self._size:
                # A batch that is left open but full is its leader's alone from now on.
                batch = self._open[key] = _Batch(key)
            place = batch.add(inputs, rows)
            if batch.rows == self._size:
                self._changed.notify_all()
            return batch, place

    def _led(self, batch: _Batch) -> list[NDArray[Any]]:
        """The leader's outputs, once those of the others are there too."""
        try:
            with self._turns:
                self._gather(batch)
                if len(batch.parts) > 1:
                    batch.outputs = self._together(batch)
                batch.done.set()
                if batch.outputs is None:
                    return self._engine.run(batch.parts[0])
        finally:
            batch.done.set()
        return batch.share(batch.outputs, 0)

    def _gather(self, batch: _Batch) -> None:
        """Wait for others, then let no more in."""
        deadline = time.monotonic() + self._wait_s
        with self._changed:
            self._changed.wait_for(
                lambda: batch.rows >= self._size or self._open.get(batch.key) is not batch,
                max(0.0, deadline - time.monotonic()),
            )
            if self._open.get(batch.key) is batch:
                del self._open[batch.key]

    def _together(self, batch: _Batch) -> list[NDArray[Any]] | None:
        """Outputs of all; None where each must run alone."""
        inputs = {name: np.concatenate([part[name] for part in batch.parts]) for name in self.input_names}
        try:
            outputs = self._engine.run(inputs)
        except PrimeSparkError:
            return None
        if all(output.shape[:1] == (batch.rows,) for output in outputs):
            return outputs
        self._is_free = False
        return None


class _Batch:
    """Inputs that run together, in the order in which they came."""

    def __init__(self, key: _Key) -> None:
        self.key = key
        self.parts: list[Mapping[str, Tensor]] = []
        self.starts: list[int] = []
        self.rows = 0
        self.outputs: list[NDArray[Any]] | None = None
        self.done = threading.Event()

    def add(self, inputs: Mapping[str, Tensor], rows: int) -> int:
        self.parts.append(inputs)
        self.starts.append(self.rows)
        self.rows += rows
        return len(self.parts) - 1

    def share(self, outputs: list[NDArray[Any]], place: int) -> list[NDArray[Any]]:
        """Of each output the rows of one of those who are in it."""
        first, end = [*self.starts, self.rows][place : place + 2]
        return [output[first:end] for output in outputs]


def _rows(inputs: Mapping[str, Tensor]) -> int | None:
    """First dimension of all inputs; None where they have none, or not the same."""
    counts = {given.shape[0] if given.ndim else None for given in inputs.values()}
    return counts.pop() if len(counts) == 1 else None
