"""A model configured on the accelerator, with a fixed ring of buffers: lives until its first failure.

After any failed call HailoRT may have shut the model down, and after a timeout the accelerator may still write into the
frame's buffers. So a session that failed takes nothing new, its buffers are never used for another frame, and the
engine builds another session.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import UnavailableError
from primespark.inference.hailo_errors import is_of_the_chip, let_go, translated
from primespark.inference.hailo_nms import NmsLayout

_RUNNING = "running the model"
# A queue may be longer than is worth its memory: an input of 640 x 640 takes 1.2 MB.
_MAX_RING = 16
_DTYPES: dict[str, np.dtype[Any]] = {
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "FLOAT32": np.dtype(np.float32),
}


@dataclass(frozen=True, slots=True)
class Stream:
    """One input or output as the host sees it.

    Attributes:
        shape: Without the batch.
        span: Least and greatest value that the chip's own type can tell; None where it is not known.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    nms: NmsLayout | None = None
    span: tuple[float, float] | None = None


class HailoSession:
    """One configured model; safe to share between threads.

    Args:
        vendor: The package `hailo_platform`.
        device: An open VDevice.
        path: The HEF.
        float_inputs: Take float32, which the host quantises, instead of the HEF's own type.

    Raises:
        Exception: Whatever the vendor's package raises.
    """

    def __init__(self, vendor: Any, device: Any, path: Path, float_inputs: bool) -> None:
        model = device.create_infer_model(str(path))
        # Asked for before the host's type takes the place of the chip's.
        spans = {one.name: _span(one) for one in model.outputs if not one.is_nms}
        float32 = vendor.FormatType.FLOAT32
        for stream in [*(model.inputs if float_inputs else ()), *(one for one in model.outputs if not one.is_nms)]:
            stream.set_format_type(float32)
        layouts = _layouts(model)
        self.inputs = tuple(_stream(one, layouts, spans) for one in model.inputs)
        self.outputs = tuple(_stream(one, layouts, spans) for one in model.outputs)
        self.device = device
        self.users = 0
        self.has_answered = False
        self.chip_failed = False
        self._failed = False
        self._configured = model.configure()
        self.size = max(1, min(_MAX_RING, self._configured.get_async_queue_size()))
        self._free = deque(_Frame(self._configured, self.inputs, self.outputs) for _ in range(self.size))
        self._changed = threading.Condition()
        self._submitting = threading.Lock()

    @property
    def failed(self) -> bool:
        """Whether it takes nothing any more."""
        return self._failed

    def run(self, arrays: Mapping[str, NDArray[Any]], timeout_s: float) -> list[NDArray[Any]]:
        """The outputs, each with a leading 1, for arrays that fit the inputs, each with a leading 1.

        Raises:
            UnavailableError: Code `accelerator_timeout`, `accelerator_unavailable`.
        """
        ends_at = time.monotonic() + timeout_s
        frame = self._take(ends_at)
        try:
            for name, array in arrays.items():
                np.copyto(frame.inputs[name], array[0])
            self._submit(frame, ends_at)
            outputs = self._answer(frame, ends_at, timeout_s)
        # An interrupted wait, too, leaves a frame in flight that nobody asks for.
        except BaseException:
            self._fail(frame.error)
            raise
        self.has_answered = True
        with self._changed:
            self._free.append(frame)
            self._changed.notify()
        return outputs

    def release(self) -> None:
        """Unload the model and abort frames nobody waits for; only when no run is under way."""
        self._fail()
        let_go(self._configured.shutdown)
        let_go(lambda: self._configured.__exit__(None, None, None))

    def _take(self, ends_at: float) -> _Frame:
        with self._changed:
            self._changed.wait_for(lambda: self._free or self._failed, max(0.0, ends_at - time.monotonic()))
            if self._failed:
                raise _being_replaced()
            if not self._free:
                raise _timed_out(0.0, "all frames of the accelerator's queue stayed in use")
            return self._free.popleft()

    def _submit(self, frame: _Frame, ends_at: float) -> None:
        if not self._submitting.acquire(timeout=max(0.0, ends_at - time.monotonic())):
            raise _timed_out(0.0, "the accelerator takes no more frames")
        try:
            if self._failed:
                raise _being_replaced()
            frame.begin()
            left_ms = max(1, int((ends_at - time.monotonic()) * 1000))
            self._configured.wait_for_async_ready(left_ms, 1)
            frame.job = self._configured.run_async([frame.bindings], frame.complete)
        except UnavailableError:
            raise
        # Raw exceptions of the binding have no base of their own.
        except Exception as error:  # noqa: BLE001
            # Before another caller gets its turn.
            self._fail(error)
            raise translated(error, _RUNNING) from None
        finally:
            self._submitting.release()

    def _answer(self, frame: _Frame, ends_at: float, timeout_s: float) -> list[NDArray[Any]]:
        if not frame.done.wait(max(0.0, ends_at - time.monotonic())):
            raise _timed_out(timeout_s)
        if frame.error is not None:
            raise translated(frame.error, _RUNNING)
        return [frame.outputs[stream.name][np.newaxis].copy() for stream in self.outputs]

    def _fail(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._failed = True
            self.chip_failed = self.chip_failed or (error is not None and is_of_the_chip(error))
            self._changed.notify_all()


class _Frame:
    """Buffers of one frame in flight, bound once."""

    def __init__(self, configured: Any, inputs: Sequence[Stream], outputs: Sequence[Stream]) -> None:
        self.inputs = {stream.name: np.empty(stream.shape, stream.dtype) for stream in inputs}
        self.outputs = {stream.name: np.empty(stream.shape, stream.dtype) for stream in outputs}
        self._partly_written = [self.outputs[stream.name] for stream in outputs if stream.nms]
        self.bindings = configured.create_bindings()
        for name, buffer in self.inputs.items():
            self.bindings.input(name).set_buffer(buffer)
        for name, buffer in self.outputs.items():
            self.bindings.output(name).set_buffer(buffer)
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.job: Any = None

    def begin(self) -> None:
        """Forget the last completion, and the boxes of other frames: the chip writes as many as it found."""
        for buffer in self._partly_written:
            buffer.fill(0)
        self.error = None
        self.done.clear()

    def complete(self, completion_info: Any) -> None:
        """Called on HailoRT's thread, where an exception would end the process."""
        try:
            self.error = completion_info.exception
        except BaseException as error:  # noqa: BLE001
            self.error = error
        self.done.set()


def _layouts(model: Any) -> dict[str, NmsLayout]:
    if not any(stream.is_nms for stream in model.outputs):
        return {}
    infos = {info.name: info.nms_shape for info in model.hef.get_output_vstream_infos() if hasattr(info, "nms_shape")}
    return {
        stream.name: NmsLayout(
            int(infos[stream.name].number_of_classes),
            int(infos[stream.name].max_bboxes_per_class),
            _last_name(stream.format.order).endswith("BY_SCORE"),
        )
        for stream in model.outputs
        if stream.is_nms
    }


def _span(stream: Any) -> tuple[float, float] | None:
    dtype = _DTYPES.get(_last_name(stream.format.type))
    scales = [(float(one.qp_scale), float(one.qp_zp)) for one in stream.quant_infos]
    if dtype is None or dtype.kind != "u" or not scales:
        return None
    most = np.iinfo(dtype).max
    return min(-zero * scale for scale, zero in scales), max((most - zero) * scale for scale, zero in scales)


def _stream(stream: Any, layouts: Mapping[str, NmsLayout], spans: Mapping[str, tuple[float, float] | None]) -> Stream:
    nms = layouts.get(stream.name)
    if nms is None:
        # AUTO stands for the chip's own type, which is bytes unless the HEF says otherwise.
        dtype = _DTYPES.get(_last_name(stream.format.type), np.dtype(np.uint8))
    else:
        dtype = np.dtype(np.uint8) if nms.by_score else np.dtype(np.float32)
    return Stream(stream.name, tuple(int(length) for length in stream.shape), dtype, nms, spans.get(stream.name))


def _last_name(member: Any) -> str:
    return str(member).rsplit(".", 1)[-1]


def _being_replaced() -> UnavailableError:
    return UnavailableError(
        "the model failed on the accelerator and is being loaded again", remedy="run it again",
        code="accelerator_unavailable",
    )  # fmt: skip


def _timed_out(timeout_s: float, why: str = "") -> UnavailableError:
    return UnavailableError(
        why or f"the accelerator did not answer within {timeout_s:g} s",
        remedy="see `dmesg` for lines of hailo; power the machine off and on if it stays",
        code="accelerator_timeout",
    )
