"""A model that answers on the accelerator while that is well and on the processor else; it returns by itself.

One failure leaves the accelerator: the request that met it is answered by the standby, and those that follow do not
wait for a chip that may hang. A thread of its own then proves the accelerator on a known input before a request gets
there again, at growing intervals while it fails, or while it fails soon after each return.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from numpy.typing import NDArray
from prometheus_client import Counter, Gauge

from edge_agent.placement import Overflow, Reason
from primespark.core.logging import get_logger
from primespark.errors import InvalidInputError, PermanentError, PrimeSparkError, TransientError, UnavailableError
from primespark.inference.catalog import ModelType
from primespark.inference.engine import are_alike
from primespark.inference.models import Answered, Computed, InputKind, RawInputs, ServedModel

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 5.0
_END_S = 5.0
# Before the accelerator answered for the first time.
LOADING = "accelerator_loading"
# After another version took its place.
RETIRED = "accelerator_retired"

ON_ACCELERATOR = Gauge("primespark_inference_on_accelerator", "1 while the accelerator answers.", ["model"])
SWITCHES = Counter("primespark_inference_switches_total", "From one processor to the other.", ["model", "to", "reason"])
PLACEMENTS = Counter("primespark_inference_placements_total", "Requests by where they ran.", ["model", "reason"])

Reply = TypeVar("Reply", Answered, Computed)

log = get_logger(__name__)


class StandbyModel:
    """Two variants that stand for each other under one name.

    Args:
        name: Theirs.
        load: Loads the accelerator's variant; called on a thread of its own, again after a failure that may pass.
        standby: The processor's variant.
        prove: Asks the accelerator's variant a known input before requests get there; raises where it is not right.
        overflow: When the standby helps a busy accelerator; None, as where the two are not of one network: never.
        pauses_s: The first between two attempts to return, and the longest.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], ServedModel],
        standby: ServedModel,
        prove: Callable[[ServedModel], None],
        overflow: Overflow | None = None,
        pauses_s: tuple[float, float] = (_FIRST_PAUSE_S, _LONGEST_PAUSE_S),
    ) -> None:
        self.name = name
        self._load = load
        self._standby = standby
        self._ask_known = prove
        self._overflow = overflow
        # More runs at once than processors only take each other's time, and memory.
        self._standby_places = threading.Semaphore(max(1, (os.cpu_count() or 1)))
        self._first_pause_s, self._longest_pause_s = pauses_s
        self._changed = threading.Condition()
        self._loaded: ServedModel | None = None
        self._fault: str | None = LOADING
        # A failure that was under way since before the last return says nothing about now.
        self._returns = 0
        self._closed = False
        ON_ACCELERATOR.labels(name).set(0)
        # A daemon, since a driver may hang for good: the process must end all the same. `close` waits for it.
        self._keeper = threading.Thread(target=self._keep, name=f"accelerator {name}"[:40], daemon=True)
        self._keeper.start()

    @property
    def model_type(self) -> ModelType:
        """Of both."""
        return self._standby.model_type

    @property
    def input_kind(self) -> InputKind:
        """What both take."""
        return self._standby.input_kind

    @property
    def current(self) -> ServedModel:
        """The variant that would answer now."""
        return self._accelerated()[0] or self._standby

    @property
    def fault(self) -> str | None:
        """Code of why the standby answers; None while the accelerator does."""
        return self._fault

    @property
    def away(self) -> ServedModel | None:
        """The accelerator's variant while the standby answers; None before it was loaded, and once it was given up."""
        is_expected = self._fault is not None and not self._closed and self._keeper.is_alive()
        return self._loaded if is_expected else None

    def answered(self, given: NDArray[Any]) -> Answered:
        """The accelerator's answer, else the standby's.

        Raises:
            InvalidInputError: As `ServedModel.predict`.
            UnavailableError: Both failed.
        """
        return self._placed(lambda variant: variant.answered(given))

    def computed(self, asked: RawInputs) -> Computed:
        """The outputs of either where their engines are alike, else of the one asked, however long it is away.

        Raises:
            InvalidInputError: As `InferenceEngine.run`.
            UnavailableError: Both failed, or the one asked; code `accelerator_unavailable`: that one is away.
        """
        loaded = self._loaded
        if loaded is not None and self._is_like_standby(loaded, asked):
            return self._placed(lambda variant: variant.computed(asked))
        if asked.variant is loaded:
            return self._on_accelerator(asked)
        return self._stood_by(lambda variant: variant.computed(asked))

    def retire(self) -> None:
        """Give the accelerator up for good; whoever still asks is answered by the standby."""
        with self._changed:
            self._closed = True
            self._fault = RETIRED
            ON_ACCELERATOR.labels(self.name).set(0)
            self._changed.notify_all()
        self._keeper.join(_END_S)
        if self._loaded is not None and not self._keeper.is_alive():
            self._loaded.close()

    def close(self) -> None:
        """Release both; answers under way end as if they were open."""
        self.retire()
        self._standby.close()

    def _placed(self, ask: Callable[[ServedModel], Reply]) -> Reply:
        """The reply of the accelerator, of the standby where that fails or is too busy."""
        accelerated, since = self._accelerated()
        if accelerated is None:
            return self._stood_by(ask)
        if self._overflow is not None and self._overflow.helps() and self._standby_places.acquire(blocking=False):
            try:
                PLACEMENTS.labels(self.name, Reason.QUEUE).inc()
                return ask(self._standby)
            finally:
                self._standby_places.release()
        try:
            reply = ask(accelerated)
        except InvalidInputError:
            raise
        except PrimeSparkError as error:
            self._leave(error, since)
            return self._stood_by(ask)
        PLACEMENTS.labels(self.name, Reason.PREFERRED).inc()
        return reply

    def _on_accelerator(self, asked: RawInputs) -> Computed:
        """What only the accelerator can give; its failure is left to be proven over, as any other."""
        accelerated, since = self._accelerated()
        if accelerated is None:
            raise UnavailableError(
                f"{self.name} runs on the processor now ({self._fault}), which takes other tensors",
                remedy="try again later, or ask again what the model takes",
                code="accelerator_unavailable",
            )
        try:
            computed = accelerated.computed(asked)
        except InvalidInputError:
            raise
        except PrimeSparkError as error:
            self._leave(error, since)
            raise
        PLACEMENTS.labels(self.name, Reason.PREFERRED).inc()
        return computed

    def _is_like_standby(self, loaded: ServedModel, asked: RawInputs) -> bool:
        may_stand_in = loaded.version == self._standby.version or not asked.is_version_named
        return may_stand_in and are_alike(loaded.engine, self._standby.engine)

    def _stood_by(self, ask: Callable[[ServedModel], Reply]) -> Reply:
        PLACEMENTS.labels(self.name, Reason.FAULT).inc()
        with self._standby_places:
            return ask(self._standby)

    def _accelerated(self) -> tuple[ServedModel | None, int]:
        with self._changed:
            return self._loaded if self._fault is None else None, self._returns

    def _leave(self, error: PrimeSparkError, since: int) -> None:
        with self._changed:
            if self._fault is not None or since != self._returns:
                return
            self._fault = error.code
            self._changed.notify_all()
        ON_ACCELERATOR.labels(self.name).set(0)
        SWITCHES.labels(self.name, "standby", error.code).inc()
        log.warning("accelerator_left", model=self.name, code=error.code, cause=error.message[:200])

    def _keep(self) -> None:
        """Come back as often as the accelerator is left, until closed or until it fails for good."""
        pause_s = 0.0
        while self._came_back(pause_s):
            returned_at = time.monotonic()
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._fault is not None)
            held = time.monotonic() - returned_at > self._longest_pause_s
            pause_s = self._first_pause_s if held else self._longer(pause_s)

    def _came_back(self, pause_s: float) -> bool:
        """Whether the accelerator answers again; attempts begin after a pause. False when it never will."""
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, pause_s) or self._closed:
                    return False
            try:
                self._prove()
            except TransientError as error:
                self._note(error.code, error.message)
            except PermanentError as error:
                self._note(error.code, error.message)
                log.error(
                    "accelerator_given_up", model=self.name, code=error.code, cause=error.message, remedy=error.remedy
                )
                return False
            except Exception:
                # A fault of ours costs the accelerator, never an answer: the standby goes on.
                log.exception("accelerator_given_up", model=self.name)
                self._note("internal_error", "see the log")
                return False
            else:
                return True
            pause_s = self._longer(pause_s)

    def _prove(self) -> None:
        if self._loaded is None:
            self._loaded = self._load()
        self._ask_known(self._loaded)
        with self._changed:
            if self._closed:
                return
            reason, self._fault = self._fault, None
            self._returns += 1
        ON_ACCELERATOR.labels(self.name).set(1)
        SWITCHES.labels(self.name, "accelerator", reason).inc()
        log.info("accelerator_answers", model=self.name, digest=self._loaded.digest, device=self._loaded.device)

    def _note(self, code: str, cause: str) -> None:
        if code != self._fault:
            log.warning("accelerator_stays_away", model=self.name, code=code, cause=cause[:200])
        self._fault = code

    def _longer(self, pause_s: float) -> float:
        return min(max(2 * pause_s, self._first_pause_s), self._longest_pause_s)
