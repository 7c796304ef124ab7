"""A Hailo-8 or Hailo-8L through HailoRT's InferModel interface."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from primespark.errors import ConflictError, IntegrityError, InvalidInputError, UnavailableError
from primespark.inference.engine import Tensor
from primespark.inference.hailo_device import HailoDevice, load_vendor
from primespark.inference.hailo_errors import is_of_the_chip, translated, translated_first_load
from primespark.inference.hailo_hef import read_header, runs_on
from primespark.inference.hailo_nms import NmsLayout
from primespark.inference.hailo_session import HailoSession

_LOADING = "loading the model"


class HailoInferenceEngine:
    """A HEF on the accelerator; safe to share between threads, and faster when several run at once.

    Inputs and outputs have a leading 1 like those of ONNX models. Outputs are float32, but for boxes sorted by score,
    which are bytes: `nms` tells where `hailo_nms.parse` is to be used. A run that fails is never an empty answer; the
    model is loaded again by the next run, and, while that fails too, at most once in `retry_pause_s`.

    Args:
        path: The HEF.
        device: The process's accelerator, shared by its models.
        timeout_s: Seconds a run may take, waiting for its turn included; loading again after a failure comes on top.
        float_inputs: Take float32 inputs, which HailoRT quantises, instead of the HEF's own type.
        retry_pause_s: Seconds in which a failure to load is answered again instead of tried again.
        clock: Seconds, never going back.

    Raises:
        IntegrityError: Code `bad_model`: no whole HEF; `wrong_architecture`: compiled for another chip.
        MissingDependencyError: The vendor's package is not installed or does not load.
        ConfigurationError: Code `accelerator_version`: HailoRT, driver or chip that do not fit.
        UnavailableError: Code `accelerator_unavailable`, `accelerator_timeout`.
    """

    def __init__(
        self,
        path: Path,
        device: HailoDevice,
        *,
        timeout_s: float = 5.0,
        float_inputs: bool = False,
        retry_pause_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._device = device
        self._timeout_s = timeout_s
        self._float_inputs = float_inputs
        self._retry_pause_s = retry_pause_s
        self._clock = clock
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._closed = False
        self._last_failure: tuple[float, UnavailableError] | None = None
        self._compiled_for = read_header(path).architecture
        self._session: HailoSession | None = None
        self.device = ""
        session = self._built(None)
        self._session = session
        self.inputs = session.inputs
        self.outputs = session.outputs
        self.input_names: tuple[str, ...] = tuple(stream.name for stream in session.inputs)
        self.input_shapes: tuple[tuple[int | None, ...], ...] = tuple((1, *stream.shape) for stream in session.inputs)
        self.input_types: tuple[np.dtype[Any] | None, ...] = tuple(stream.dtype for stream in session.inputs)
        self.output_names: tuple[str, ...] = tuple(stream.name for stream in session.outputs)
        self.output_shapes: tuple[tuple[int | None, ...], ...] = tuple((1, *stream.shape) for stream in session.outputs)
        self.output_types: tuple[np.dtype[Any] | None, ...] = tuple(stream.dtype for stream in session.outputs)
        self.nms: dict[str, NmsLayout] = {stream.name: stream.nms for stream in session.outputs if stream.nms}
        self.concurrency = session.size

    def run(self, inputs: Mapping[str, Tensor]) -> list[NDArray[Any]]:
        """The outputs for `inputs`, as `InferenceEngine.run`.

        Raises:
            ConflictError: Code `engine_closed`; code `accelerator_forked`: in a fork of the owner.
        """
        self._device.check_owner()
        self._check(inputs)
        session = self._entered()
        try:
            return session.run(inputs, self._timeout_s)
        finally:
            self._leave(session)

    def is_available(self) -> bool:
        """Whether a run has a chance: the chip is there and loading did not just fail. Opens nothing."""
        return self._device.is_available() and self._recent_failure() is None

    def probe(self) -> None:
        """Nothing, when the model is loaded or could be loaded again now.

        Raises:
            PrimeSparkError: As `run`, without running a frame.
        """
        self._device.check_owner()
        self._leave(self._entered())

    def close(self) -> None:
        """Release the model; runs under way end as if it were open. Closing twice is allowed, and in a fork nothing."""
        if not self._device.is_owner:
            return
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
            unused = session is not None and not session.users
        if session is not None and unused:
            session.release()

    def _entered(self) -> HailoSession:
        """The session, one user more; loaded again where it failed."""
        session = self._usable()
        if session is not None:
            return session
        if not self._building.acquire(timeout=self._timeout_s):
            raise UnavailableError("the accelerator takes long to load the model", code="accelerator_timeout")
        try:
            return self._usable() or self._replaced()
        finally:
            self._building.release()

    def _usable(self) -> HailoSession | None:
        with self._lock:
            if self._closed:
                raise ConflictError("the model is closed", code="engine_closed")
            session = self._session
            if session is None or session.failed:
                return None
            session.users += 1
            return session

    def _replaced(self) -> HailoSession:
        failure = self._recent_failure()
        if failure is not None:
            raise UnavailableError(
                failure.message, remedy=failure.remedy, code=failure.code, retry_after_s=self._retry_pause_s
            )
        with self._lock:
            failed, self._session = self._session, None
            unused = failed is not None and not failed.users
        if failed is not None and unused:
            failed.release()
        try:
            return self._installed(self._built(failed))
        except UnavailableError as error:
            self._last_failure = (self._clock() + self._retry_pause_s, error)
            raise

    def _installed(self, session: HailoSession) -> HailoSession:
        with self._lock:
            closed = self._closed
            if not closed:
                self._session = session
                session.users += 1
                self.concurrency = session.size
        if closed:
            session.release()
            raise ConflictError("the model is closed", code="engine_closed")
        return session

    def _built(self, failed: HailoSession | None) -> HailoSession:
        """A new session; the device is opened anew where it failed, or where a session failed before it answered."""
        if failed is not None and (failed.chip_failed or not failed.has_answered):
            self._device.discard(failed.device)
        device, architecture = self._device.open()
        if not runs_on(self._compiled_for, architecture):
            raise IntegrityError(
                f"{self._path.name} is compiled for {self._compiled_for}, the chip is a {architecture}",
                remedy=f"fetch it compiled for {architecture}", code="wrong_architecture",
            )  # fmt: skip
        try:
            session = HailoSession(load_vendor(), device, self._path, self._float_inputs)
        # Raw exceptions of the binding have no base of their own.
        except Exception as error:  # noqa: BLE001
            if is_of_the_chip(error):
                self._device.discard(device)
            translate = translated if self.device else translated_first_load
            raise translate(error, _LOADING) from None
        self.device = architecture
        return session

    def _leave(self, session: HailoSession) -> None:
        with self._lock:
            session.users -= 1
            unused = not session.users and self._session is not session
        if unused:
            session.release()

    def _recent_failure(self) -> UnavailableError | None:
        failure = self._last_failure
        return failure[1] if failure is not None and self._clock() < failure[0] else None

    def _check(self, inputs: Mapping[str, Tensor]) -> None:
        if set(inputs) != set(self.input_names):
            raise InvalidInputError(
                f"the model takes {', '.join(self.input_names)}, not {', '.join(map(str, inputs)) or 'nothing'}",
                code="wrong_model_input",
            )
        for stream in self.inputs:
            given = inputs[stream.name]
            if given.dtype != stream.dtype or given.shape != (1, *stream.shape):
                raise InvalidInputError(
                    f"{stream.name} is {stream.dtype} {[1, *stream.shape]}, not {given.dtype} {list(given.shape)}",
                    code="wrong_model_input",
                )
