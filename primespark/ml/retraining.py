"""When the pipeline starts again: enough new labels that have been quiet, a bounded number of attempts for each."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

MAX_ATTEMPTS = 3


class Outcome(StrEnum):
    """What became of a run of the pipeline."""

    RUNNING = "running"
    CONCLUDED = "concluded"
    # The same data would fail again: more labels are needed, not another attempt.
    REFUSED = "refused"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Attempt:
    """The newest run: for so many labels the so-manieth."""

    labels: int
    number: int
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels there are.

    Attributes:
        total: How many.
        learned: How many the last concluded run began with.
        quiet_s: Seconds since the newest came in.
    """

    total: int
    learned: int
    quiet_s: float


@dataclass(frozen=True, slots=True)
class Start:
    """Start a run; both numbers are part of its run key."""

    labels: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Do not start one; look again after so many seconds, or when something came in."""

    reason: str
    look_again_s: float | None = None


def decide(labels: Labels, last: Attempt | None, minimum_new_labels: int, settle_s: float) -> Start | Wait:
    """Whether to start the pipeline now."""
    if last is not None and last.outcome is Outcome.RUNNING:
        return Wait("a run is under way", look_again_s=1.0)
    learned = labels.learned
    if last is not None and last.labels > learned and last.outcome is not Outcome.CONCLUDED:
        if last.outcome is Outcome.FAILED and last.number < MAX_ATTEMPTS:
            return Start(last.labels, last.number + 1)
        learned = last.labels
    missing = learned + minimum_new_labels - labels.total
    if missing > 0:
        return Wait(f"{missing} labels too few for another run")
    if labels.quiet_s < settle_s:
        return Wait("labels are still coming in", look_again_s=settle_s - labels.quiet_s)
    return Start(labels.total, 1)
