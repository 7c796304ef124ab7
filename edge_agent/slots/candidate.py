"""A version under trial beside the live one: it sees requests, answers some, and never fails or delays a caller.

It runs on a thread of its own, one input at a time. So a version that hangs holds that thread and nothing else, and
what comes meanwhile is answered by the live version as if there were no other.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from numpy.typing import NDArray
from prometheus_client import Counter

from edge_agent.slots.comparison import agreement
from edge_agent.slots.phases import Run, State
from primespark.core.logging import get_logger
from primespark.errors import PrimeSparkError
from primespark.inference.catalog import ModelType
from primespark.inference.engine import are_alike
from primespark.inference.models import Answered, Computed, InputKind, Model, RawInputs, ServedModel

# A caller waits so many times the live version's time, or at least so long, for a version in canary; then the live one
# answers.
_PATIENCE = 2
_LEAST_PATIENCE_S = 0.1
# A run that takes so many times the live version's time, and so long, will not end.
_HANGING = 20
_LEAST_HANGING_S = 10.0

RUNS = Counter("primespark_model_candidate_runs_total", "Runs of versions under trial.", ["phase", "outcome"])
for _phase in (State.SHADOW, State.CANARY):
    for _outcome in ("ok", "failed", "dropped"):
        RUNS.labels(_phase, _outcome)

Reply = TypeVar("Reply", Answered, Computed)

_ABANDONED: list[threading.Thread] = []

log = get_logger(__name__)


def is_any_abandoned() -> bool:
    """Whether a version hangs in a thread that was given up; an interpreter that ends beside it aborts (SIGABRT)."""
    return any(thread.is_alive() for thread in _ABANDONED)


@dataclass(frozen=True, slots=True)
class _Question(Generic[Reply]):
    """What both versions are asked, and how far two replies agree, 0..1; None where that cannot be told."""

    ask: Callable[[Model], Reply]
    agreement: Callable[[Reply, Reply], float] | None


class Candidate:
    """What stands in a slot while a version is under trial: answers as the live model, and learns of the other.

    Args:
        live: The version in service.
        version: The one under trial.
        is_idle: Whether no work waits; asked before a run nobody waits for.
        on_run: Called on some thread after each run.
    """

    def __init__(
        self, live: Model, version: ServedModel, is_idle: Callable[[], bool], on_run: Callable[[], None]
    ) -> None:
        self._live = live
        self._version = version
        self._is_idle = is_idle
        self._on_run = on_run
        self._phase: State | None = None
        self._share = 0.0
        self._runs: list[Run] = []
        self._live_s = 0.0
        self._random = random.Random()  # noqa: S311 (a sample is no secret)
        self._taking = threading.Lock()
        self._busy_since: float | None = None
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        # A daemon: one that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name=f"candidate-{version.name}", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """As the live model's."""
        return self._live.name

    @property
    def model_type(self) -> ModelType:
        """As the live model's."""
        return self._live.model_type

    @property
    def input_kind(self) -> InputKind:
        """As the live model's."""
        return self._live.input_kind

    @property
    def current(self) -> ServedModel:
        """The live model's variant."""
        return self._live.current

    @property
    def fault(self) -> str | None:
        """The live model's."""
        return self._live.fault

    @property
    def away(self) -> ServedModel | None:
        """The live model's."""
        return self._live.away

    def answered(self, given: NDArray[Any]) -> Answered:
        """The live version's answer; in canary, for a share of the inputs, that of the version under trial."""
        return self._reply(_Question(lambda model: model.answered(given), self._agreement))

    def computed(self, asked: RawInputs) -> Computed:
        """The live version's outputs; in canary a share is the other's, if that is like it and no version is named."""
        if asked.is_version_named or not are_alike(asked.variant.engine, self._version.engine):
            return self._live.computed(asked)
        return self._reply(_Question(lambda model: model.computed(asked), None))

    def retire(self) -> None:
        """As the live model."""
        self._live.retire()

    def close(self) -> None:
        """Release the live model, which is what stood in the slot."""
        self._live.close()

    def begin(self, phase: State, share: float) -> None:
        """Enter `shadow` or `canary`; what was observed before counts no more."""
        self._runs = []
        self._phase, self._share = phase, share

    def pause(self) -> None:
        """Begin no more runs in this phase."""
        self._phase = None

    def end(self) -> None:
        """Answer as the live model from now on."""
        self._phase = None
        self._jobs.put(None)

    def runs(self) -> list[Run]:
        """What was observed in this phase."""
        return list(self._runs)

    @property
    def is_busy(self) -> bool:
        """Whether a run is under way."""
        return self._busy_since is not None

    @property
    def hangs(self) -> bool:
        """Whether the run under way will not end."""
        since = self._busy_since
        return since is not None and time.monotonic() - since > max(_HANGING * self._live_s, _LEAST_HANGING_S)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread after `end`; whether it ended."""
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            _ABANDONED.append(self._thread)
        return not self._thread.is_alive()

    def _take(self) -> bool:
        with self._taking:
            if self._busy_since is not None:
                return False
            self._busy_since = time.monotonic()
            return True

    def _reply(self, question: _Question[Reply]) -> Reply:
        phase = self._phase
        is_chosen = phase is not None and self._random.random() < self._share
        if is_chosen and phase is State.CANARY and self._take():
            reply = self._answer(question)
            if reply is not None:
                return reply
        started = time.perf_counter()
        reply = question.ask(self._live)
        self._live_s = time.perf_counter() - started
        # A shadow whose replies cannot be compared would prove nothing.
        if is_chosen and phase is State.SHADOW and question.agreement is not None:
            self._shadow(question, reply, self._live_s)
        return reply

    def _shadow(self, question: _Question[Reply], live: Reply, live_s: float) -> None:
        if not self._is_idle() or not self._take():
            RUNS.labels(State.SHADOW, "dropped").inc()
            return
        runs = self._runs

        def work() -> None:
            candidate_s, reply = self._try(question, State.SHADOW)
            runs.append(_compared(question, live, live_s, reply, candidate_s))

        self._jobs.put(work)

    def _answer(self, question: _Question[Reply]) -> Reply | None:
        """The version's reply; None where it has none, or not soon enough."""
        runs, replies = self._runs, Future[Reply | None]()

        def work() -> None:
            candidate_s, reply = self._try(question, State.CANARY)
            replies.set_result(reply)
            self._compare_with_live(runs, question, reply, candidate_s)

        self._jobs.put(work)
        patience_s = max(_PATIENCE * self._live_s, _LEAST_PATIENCE_S)
        try:
            return replies.result(timeout=patience_s)
        except TimeoutError:
            return None

    def _try(self, question: _Question[Reply], phase: State) -> tuple[float, Reply | None]:
        """Seconds, and the version's reply; None where it fails, whatever it raises."""
        started = time.perf_counter()
        try:
            reply: Reply | None = question.ask(self._version)
        except Exception as error:  # noqa: BLE001 (a version under trial may raise anything, and nobody may suffer it)
            reply = None
            log.warning("candidate_failed", model=self.name, version=self._version.version, cause=str(error)[:200])
        RUNS.labels(phase, "failed" if reply is None else "ok").inc()
        return time.perf_counter() - started, reply

    def _compare_with_live(
        self, runs: list[Run], question: _Question[Reply], reply: Reply | None, candidate_s: float
    ) -> None:
        started = time.perf_counter()
        try:
            live = question.ask(self._live)
        except PrimeSparkError:
            # An input that the live version refuses says nothing about the other.
            return
        except Exception:
            # Nor does a fault of the live version, which no caller met here.
            log.exception("live_version_failed", model=self.name)
            return
        runs.append(_compared(question, live, time.perf_counter() - started, reply, candidate_s))

    def _agreement(self, live: Answered, candidate: Answered) -> float:
        return agreement(self.model_type, live.predictions, candidate.predictions)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                # Predictions of another form than the type's: no measure takes them.
                log.exception("candidate_not_compared", model=self.name)
                self._runs.append(Run(0.0))
            finally:
                self._busy_since = None
                self._on_run()


def _compared(question: _Question[Reply], live: Reply, live_s: float, reply: Reply | None, candidate_s: float) -> Run:
    if reply is None:
        return Run(live_s)
    comparable_s = live_s if live.by.device == reply.by.device else None
    return Run(comparable_s, candidate_s, question.agreement(live, reply) if question.agreement is not None else None)
