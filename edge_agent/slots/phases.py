"""When a version under trial goes on, and when it goes: decisions over what was observed; pure.

A limit ends a phase as soon as it can no longer be kept, whatever the rest of the phase would bring. So a version that
is taken back early would have been taken back at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

# Of a model that takes microseconds a ratio says nothing: the clock and the scheduler do.
_LATENCY_GRACE_S = 0.005
_LEAST_TIMINGS = 5
# Sums of floats differ by their order.
_ROUNDING = 1e-9


class State(StrEnum):
    """Where a version is, as reported in `reported.models.<name>.state`."""

    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    SHADOW = "shadow"
    CANARY = "canary"
    LIVE = "live"


class Verdict(StrEnum):
    """What becomes of a version; those but the first two take it back."""

    WAIT = "wait"
    PROCEED = "proceed"
    FAILS = "fails"
    IS_SLOWER = "is_slower"
    DISAGREES = "disagrees"


@dataclass(frozen=True, slots=True)
class Limits:
    """What a version must keep to.

    Attributes:
        max_error_ratio: Most runs that fail where the live version answers.
        max_latency_ratio: Most times its median may be of the live one's.
        minimum_agreement: Least mean agreement with the live version's answers.
    """

    max_error_ratio: float
    max_latency_ratio: float
    minimum_agreement: float


@dataclass(frozen=True, slots=True)
class Plan:
    """How long a phase is: so many runs, or so many seconds, whichever comes first."""

    runs: int
    max_s: float


@dataclass(frozen=True, slots=True)
class Run:
    """One input that both versions were asked; inputs that the live one refuses are none.

    Attributes:
        live_s: Seconds the live version took; None: it ran on another kind of processor, which says nothing.
        candidate_s: Seconds the version under trial took; None: it failed.
        agreement: 0..1, between the two answers; None: it failed, or they are raw tensors, which nothing compares.
    """

    live_s: float | None
    candidate_s: float | None = None
    agreement: float | None = None


def judge(runs: Sequence[Run], elapsed_s: float, plan: Plan, limits: Limits) -> Verdict:
    """What becomes of a version in a phase.

    Args:
        runs: Of this phase; none proves nothing against it.
        elapsed_s: Since the phase began.
        plan: Of this phase.
        limits: To keep.
    """
    is_over = len(runs) >= plan.runs or elapsed_s >= plan.max_s
    expected = len(runs) if is_over else plan.runs
    if _errors(runs) > limits.max_error_ratio * expected + _ROUNDING:
        return Verdict.FAILS
    if _best_agreement(runs, expected) < limits.minimum_agreement - _ROUNDING:
        return Verdict.DISAGREES
    if not is_over:
        return Verdict.WAIT
    return Verdict.IS_SLOWER if _is_slower(runs, limits.max_latency_ratio) else Verdict.PROCEED


def _errors(runs: Sequence[Run]) -> int:
    return sum(run.candidate_s is None for run in runs)


def _best_agreement(runs: Sequence[Run], expected: int) -> float:
    """The mean if all runs to come agreed; 1 where nothing was or will be compared."""
    found = [run.agreement for run in runs if run.agreement is not None]
    remaining = expected - len(runs)
    compared = len(found) + remaining
    return (sum(found) + remaining) / compared if compared else 1.0


def _is_slower(runs: Sequence[Run], max_ratio: float) -> bool:
    pairs = [(run.live_s, run.candidate_s) for run in runs if run.candidate_s is not None and run.live_s is not None]
    if len(pairs) < _LEAST_TIMINGS:
        return False
    live_s: float = median(live_s for live_s, _ in pairs)
    candidate_s: float = median(candidate_s for _, candidate_s in pairs)
    return candidate_s > max_ratio * live_s + _LATENCY_GRACE_S
