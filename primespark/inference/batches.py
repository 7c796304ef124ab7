"""Memory for batches, used again and again: making it anew costs more than what is computed into it.

A batch is handed out as a read-only array. Its buffer comes back when that array and every view of it are gone, which
Python itself tells; so nobody can give a buffer back too early, or see another batch in one that is still held.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from primespark.errors import InvalidInputError, OverloadedError

MAX_BATCH = 32
BUFFERS = 2
MAX_BATCH_BYTES = 256 * 1024 * 1024


@dataclass(slots=True, eq=False)
class _Buffer:
    memory: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    form: Hashable = None
    # What lies at each place of the batch, as far as the writer may build on it.
    marks: dict[int, Hashable] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """A batch while it is written; only `array` outlives that.

    Attributes:
        array: What to hand out, read-only [n, ...].
        target: The same memory, to write to.
        marks: By place, what the writer noted when it last wrote there in this form, such as where its border lies.
    """

    array: NDArray[Any]
    target: NDArray[Any]
    marks: dict[int, Hashable]


class BatchRing:
    """At most two batches at once, each of up to 32 items and 256 MiB; safe to share between threads."""

    def __init__(self) -> None:
        # Its operations are atomic: a buffer may come back in any thread, in the middle of any line.
        self._free: deque[_Buffer] = deque(_Buffer() for _ in range(BUFFERS))

    @property
    def free(self) -> int:
        """Batches that can be taken now."""
        return len(self._free)

    def take(self, count: int, shape: tuple[int, ...], dtype: DTypeLike) -> Batch:
        """A batch [count, *shape], its content left from whatever was in it before.

        Raises:
            InvalidInputError: Code `bad_batch`: no or too many items, too many bytes.
            OverloadedError: Code `batches_held`: two are in use.
        """
        kind = np.dtype(dtype)
        size = count * int(np.prod(shape)) * kind.itemsize
        if not 1 <= count <= MAX_BATCH or not 0 < size <= MAX_BATCH_BYTES:
            raise InvalidInputError(
                f"a batch of {count} items, {size} bytes",
                remedy=f"1 to {MAX_BATCH} items, {MAX_BATCH_BYTES} bytes",
                code="bad_batch",
            )
        try:
            buffer = self._free.popleft()
        except IndexError:
            raise OverloadedError(
                f"{BUFFERS} batches are in use", remedy="drop one before the next", code="batches_held"
            ) from None
        try:
            _prepare(buffer, size, (shape, kind))
        except MemoryError:
            self._free.append(buffer)
            raise
        # Its base is no array, so numpy makes this one the base of all views: it lives as long as the last of them.
        owner: NDArray[Any] = np.frombuffer(buffer.memory.data[:size], dtype=kind)
        weakref.finalize(owner, self._free.append, buffer).atexit = False
        array = owner.reshape(count, *shape)
        array.setflags(write=False)
        return Batch(array, owner.reshape(count, *shape), buffer.marks)


def _prepare(buffer: _Buffer, size: int, form: Hashable) -> None:
    if len(buffer.memory) < size:
        buffer.memory, buffer.form = np.empty(size, dtype=np.uint8), None
    if buffer.form != form:
        buffer.form, buffer.marks = form, {}
