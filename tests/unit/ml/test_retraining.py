"""When the pipeline starts again."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from primespark.ml.retraining import MAX_ATTEMPTS, Attempt, Labels, Outcome, Start, Wait, decide

MINIMUM = 60
SETTLE_S = 1.5
QUIET = 10.0


def test_the_first_run_starts_with_the_first_sixty_labels() -> None:
    assert isinstance(decide(Labels(59, 0, QUIET), None, MINIMUM, SETTLE_S), Wait)
    assert decide(Labels(60, 0, QUIET), None, MINIMUM, SETTLE_S) == Start(60, 1)


def test_no_run_starts_while_labels_are_coming_in() -> None:
    waiting = decide(Labels(500, 60, 0.5), None, MINIMUM, SETTLE_S)
    assert waiting == Wait("labels are still coming in", look_again_s=1.0)


def test_one_run_at_a_time() -> None:
    running = Attempt(0, 0, Outcome.RUNNING)
    assert isinstance(decide(Labels(500, 60, QUIET), running, MINIMUM, SETTLE_S), Wait)


def test_a_failed_run_is_tried_again_with_the_same_labels_three_times_in_all() -> None:
    labels, last, started = Labels(100, 0, QUIET), None, []
    for _ in range(10):
        decision = decide(labels, last, MINIMUM, SETTLE_S)
        if isinstance(decision, Wait):
            break
        started.append(decision)
        last = Attempt(decision.labels, decision.attempt, Outcome.FAILED)
    assert started == [Start(100, 1), Start(100, 2), Start(100, 3)]


def test_a_refused_run_is_not_tried_again_until_there_are_new_labels() -> None:
    refused = Attempt(100, 1, Outcome.REFUSED)
    assert isinstance(decide(Labels(159, 0, QUIET), refused, MINIMUM, SETTLE_S), Wait)
    assert decide(Labels(160, 0, QUIET), refused, MINIMUM, SETTLE_S) == Start(160, 1)


def test_a_concluded_run_counts_the_labels_it_began_with_not_those_it_was_started_for() -> None:
    concluded = Attempt(100, 1, Outcome.CONCLUDED)
    assert isinstance(decide(Labels(190, 140, QUIET), concluded, MINIMUM, SETTLE_S), Wait)


@given(
    totals=st.lists(st.integers(0, 200), min_size=1, max_size=40),
    outcomes=st.lists(st.sampled_from([Outcome.CONCLUDED, Outcome.REFUSED, Outcome.FAILED]), min_size=40, max_size=40),
)
def test_runs_are_bounded_and_never_named_twice(totals: list[int], outcomes: list[Outcome]) -> None:
    """Law: with `n` labels in all there are at most `n / minimum` label counts, each with at most three attempts."""
    total = learned = 0
    last: Attempt | None = None
    started: list[Start] = []
    for added, outcome in zip(totals, outcomes, strict=False):
        total += added
        decision = decide(Labels(total, learned, QUIET), last, MINIMUM, SETTLE_S)
        if isinstance(decision, Wait):
            continue
        started.append(decision)
        last = Attempt(decision.labels, decision.attempt, outcome)
        if outcome is Outcome.CONCLUDED:
            learned = total
    assert len(started) == len(set(started))
    assert all(start.attempt <= MAX_ATTEMPTS for start in started)
    assert len({start.labels for start in started}) <= total // MINIMUM
