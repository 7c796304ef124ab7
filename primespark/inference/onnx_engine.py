"""ONNX Runtime on the processor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from primespark.errors import ConflictError, IntegrityError, InvalidInputError, UnavailableError
from primespark.inference.engine import Tensor
from primespark.inference.onnx_files import check_self_contained

# They have no common base below Exception.
_ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    ort_errors.EPFail,
)
_TYPES: dict[str, np.dtype[Any]] = {
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(string)": np.dtype(np.object_),
}
_ERROR_SEVERITY = 3
_MAX_REASON = 300


class OnnxEngine:
    """A model loaded into ONNX Runtime; safe to share between threads.

    Args:
        source: The ONNX file, or its bytes.
        threads: Threads one run may use.

    Raises:
        IntegrityError: Code `external_data`: the file names other files; code `bad_model`: it cannot be run.
    """

    device = "cpu"
    # Each run takes `threads` of the processor's own; how many processors are to spare, the caller knows.
    concurrency = 1

    def __init__(self, source: Path | bytes, threads: int = 1) -> None:
        data = _read(source) if isinstance(source, Path) else source
        check_self_contained(data)
        try:
            session = ort.InferenceSession(data, _options(threads), providers=["CPUExecutionProvider"])
        except _ORT_ERRORS as error:
            raise IntegrityError(f"the model cannot be loaded: {_reason(error)}", code="bad_model") from None
        self._session: Any = session
        inputs, outputs = session.get_inputs(), session.get_outputs()
        self.input_names: tuple[str, ...] = tuple(item.name for item in inputs)
        self.input_shapes: tuple[tuple[int | None, ...], ...] = tuple(_shape(item) for item in inputs)
        self.input_types: tuple[np.dtype[Any] | None, ...] = tuple(_TYPES.get(item.type) for item in inputs)
        self.output_names: tuple[str, ...] = tuple(item.name for item in outputs)
        self.output_shapes: tuple[tuple[int | None, ...], ...] = tuple(_shape(item) for item in outputs)
        self.output_types: tuple[np.dtype[Any] | None, ...] = tuple(_TYPES.get(item.type) for item in outputs)

    def run(self, inputs: Mapping[str, Tensor]) -> list[NDArray[Any]]:
        """The outputs for `inputs`, as `InferenceEngine.run`."""
        session = self._session
        if session is None:
            raise ConflictError("the model is closed", code="engine_closed")
        try:
            outputs: list[NDArray[Any]] = session.run(self.output_names, inputs)
        except (ort_errors.InvalidArgument, ValueError) as error:
            raise InvalidInputError(
                f"the model does not take this input: {_reason(error)}", code="wrong_model_input"
            ) from None
        except _ORT_ERRORS as error:
            raise UnavailableError(f"the model did not run: {_reason(error)}", code="inference_failed") from None
        return outputs

    def close(self) -> None:
        """Release the model; a run under way holds the session until it ends."""
        self._session = None


def _options(threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERROR_SEVERITY
    # A pattern is kept for every input shape ever seen, without bound; measured, they gain nothing here.
    options.enable_mem_pattern = False
    # Threads that spin for work take the processor from every other process of a small device.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Bytes of ONNX Runtime's own format would pass by the check of the ONNX file.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return options


def _shape(item: Any) -> tuple[int | None, ...]:
    return tuple(size if isinstance(size, int) else None for size in item.shape)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"model {path.name} cannot be read: {error.strerror}", code="bad_model") from None


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:_MAX_REASON]
