"""`InferModel`, `ConfiguredInferModel`, their streams, bindings and jobs."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from numpy.typing import NDArray

from .. import _hef, _machine
from .._machine import MACHINE
from .._network import Network, host_shape
from .._runtime import Chip, Job, Pipeline, Status
from ._bindings import Bindings
from ._exceptions import ExceptionWrapper, HailoRTException, exception_of
from ._pyhailort import FormatType

_NMS_ORDERS = ["HAILO_NMS_BY_CLASS", "HAILO_NMS_BY_SCORE"] if MACHINE.holds("nms_orders") else ["HAILO_NMS"]
FormatOrder: Any = enum.Enum("FormatOrder", ["NHWC", "NCHW", "NHW", "NC", *_NMS_ORDERS, "HAILO_NMS_WITH_BYTE_MASK"])  # type: ignore[misc]
_BY_RANK = {1: "NC", 2: "NHW", 3: "NHWC"}


def order_of(stream: _hef.Stream) -> Any:
    """The order of a stream's elements."""
    if stream.nms is None:
        return FormatOrder[_BY_RANK[len(stream.shape)]]
    return FormatOrder[_NMS_ORDERS[-1] if stream.nms.by_score else _NMS_ORDERS[0]]


class InferStream:
    """Parameters of one input or output."""

    def __init__(self, stream: _hef.Stream, model: InferModel) -> None:
        self._stream = stream
        self._model = model
        self.name = stream.name

    @property
    def shape(self) -> list[int]:
        """No batch dimension."""
        return host_shape(self._stream)

    @property
    def format(self) -> Any:
        """Type and order."""
        kind = self._model.types[self.name]
        native = "FLOAT32" if self._stream.nms and not self._stream.nms.by_score else self._stream.type
        return SimpleNamespace(type=FormatType[native if kind == "AUTO" else kind], order=order_of(self._stream))

    @property
    def is_nms(self) -> bool:
        """A property, not a method."""
        return self._stream.nms is not None

    @property
    def quant_infos(self) -> list[Any]:
        """Scale and zero point."""
        return [SimpleNamespace(qp_scale=self._stream.scale or 1.0, qp_zp=self._stream.zero_point)]

    def set_format_type(self, kind: FormatType) -> None:
        """Type of the host's buffer."""
        self._model.types[self.name] = kind.name

    def set_nms_score_threshold(self, threshold: float) -> None:
        """Does not fail where there is no NMS: `configure` does."""
        if not self.is_nms:
            self._model.invalid = True


class InferModel:
    """A model before it is configured."""

    def __init__(self, chip: Chip, network: Network, scheduled: bool, hef: Callable[[], Any]) -> None:
        self._chip = chip
        self._network = network
        self._scheduled = scheduled
        self._hef = hef
        self.invalid = False
        streams = (*network.hef.inputs, *network.hef.outputs)
        self.types = {stream.name: "AUTO" for stream in streams}

    @property
    def hef(self) -> Any:
        """The file, parsed once more."""
        return self._hef()

    @property
    def inputs(self) -> list[InferStream]:
        """In the HEF's order."""
        return [InferStream(stream, self) for stream in self._network.hef.inputs]

    @property
    def outputs(self) -> list[InferStream]:
        """In the HEF's order."""
        return [InferStream(stream, self) for stream in self._network.hef.outputs]

    @property
    def input_names(self) -> list[str]:
        """In the HEF's order."""
        return [stream.name for stream in self._network.hef.inputs]

    @property
    def output_names(self) -> list[str]:
        """In the HEF's order."""
        return [stream.name for stream in self._network.hef.outputs]

    def input(self, name: str = "") -> InferStream:
        """The input of this name, or the only one."""
        return _chosen(self.inputs, name)

    def output(self, name: str = "") -> InferStream:
        """The output of this name, or the only one."""
        return _chosen(self.outputs, name)

    def set_batch_size(self, size: int) -> None:
        """Size of a burst, no dimension."""
        if not 0 <= size < 1 << 16:
            raise TypeError("set_batch_size(): incompatible function arguments")

    def configure(self) -> ConfiguredInferModel:
        """Load it."""
        machine = _machine.MACHINE
        with ExceptionWrapper():
            status = (
                machine.configure_status
                or machine.dead_status()
                or (36 if self._chip.broken else 0)
                or (6 if self.invalid else 0)
            )
            if status:
                raise Status(status)
        return ConfiguredInferModel(Pipeline(self._chip, self._network, dict(self.types)), self, self._scheduled)


def _chosen(streams: list[InferStream], name: str) -> InferStream:
    with ExceptionWrapper():
        if not name and len(streams) != 1:
            raise Status(6)
        for stream in streams:
            if name in ("", stream.name):
                return stream
        raise Status(61)


class AsyncInferJob:
    """What `run_async` returns."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def wait(self, timeout_ms: int) -> None:
        """Timeout does not cancel."""
        with ExceptionWrapper():
            self._job.wait(timeout_ms)


class AsyncInferCompletionInfo:
    """What a callback gets."""

    def __init__(self, exception: HailoRTException | None) -> None:
        self.exception = exception


class ConfiguredInferModel:
    """A model that can run."""

    def __init__(self, pipeline: Pipeline, model: InferModel, scheduled: bool) -> None:
        self._inner: Any = pipeline
        self._hef = model._network.hef
        self._scheduled = scheduled
        self._active = scheduled
        self._buffer_guards: deque[Any] = deque()

    def __enter__(self) -> ConfiguredInferModel:
        return self

    def __exit__(self, *_: object) -> None:
        self._inner = None

    def activate(self) -> None:
        """Only without scheduler."""
        with ExceptionWrapper():
            if self._scheduled:
                raise Status(6)
        self._active = True

    def create_bindings(
        self,
        input_buffers: dict[str, NDArray[Any]] | None = None,
        output_buffers: dict[str, NDArray[Any]] | None = None,
    ) -> Bindings:
        """Buffers of one frame."""
        bindings = Bindings(self._hef)
        for name, buffer in (input_buffers or {}).items():
            bindings.input(name).set_buffer(buffer)
        for name, buffer in (output_buffers or {}).items():
            bindings.output(name).set_buffer(buffer)
        return bindings

    def get_async_queue_size(self) -> int:
        """Frames that may be in flight."""
        return int(self._inner.queue_size)

    def wait_for_async_ready(self, timeout_ms: int = 1000, frames_count: int = 1) -> None:
        """More frames than the queue's size never become ready."""
        with ExceptionWrapper():
            self._inner.wait_ready(timeout_ms, frames_count)

    def run_async(self, bindings: list[Bindings], callback: Callable[..., object] | None = None) -> AsyncInferJob:
        """Start one frame for each of the bindings."""
        self._buffer_guards.append([bound.buffers for bound in bindings])

        def wrapped(status: int) -> None:
            if callback:
                callback(completion_info=AsyncInferCompletionInfo(exception_of(status) if status else None))
            self._buffer_guards.popleft()

        with ExceptionWrapper():
            if not self._active:
                raise Status(69)
            # A call that fails leaves its guard behind, so that later ones release those of others.
            frames = [(dict(bound.buffers[0]), dict(bound.buffers[1])) for bound in bindings]
            return AsyncInferJob(self._inner.run_async(frames, wrapped))

    def run(self, bindings: list[Bindings], timeout: int) -> None:
        """`run_async` and wait; it does not wait for readiness."""
        self.run_async(bindings).wait(timeout)

    def shutdown(self) -> None:
        """Abort what is in flight."""
        with ExceptionWrapper():
            self._inner.shutdown()
