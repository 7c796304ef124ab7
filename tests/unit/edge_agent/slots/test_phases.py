"""Decisions over versions under trial: laws that hold for every history."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.slots.phases import Limits, Plan, Run, Verdict, judge

LIMITS = Limits(max_error_ratio=0.1, max_latency_ratio=2.0, minimum_agreement=0.5)
PLAN = Plan(runs=20, max_s=30.0)
TAKEN_BACK = {Verdict.FAILS, Verdict.DISAGREES, Verdict.IS_SLOWER}

ratios = st.floats(0, 1)
seconds = st.floats(1e-5, 10)
good_runs = st.builds(Run, seconds, seconds, ratios)
# Raw tensors are compared with nothing.
uncompared_runs = st.builds(Run, seconds, seconds)
runs = st.lists(st.one_of(good_runs, uncompared_runs, st.builds(Run, seconds)), max_size=40)
limits = st.builds(Limits, ratios, st.floats(1, 10), ratios)
plans = st.builds(Plan, st.integers(1, 30), st.floats(0, 100))
times = st.floats(0, 200)


def agreeing(count: int, agreement: float = 1.0, candidate_s: float = 0.01) -> list[Run]:
    return [Run(0.01, candidate_s, agreement)] * count


def test_without_requests_time_alone_lets_a_version_on() -> None:
    assert judge([], 29.9, PLAN, LIMITS) is Verdict.WAIT
    assert judge([], 30.0, PLAN, LIMITS) is Verdict.PROCEED


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        (agreeing(19), Verdict.WAIT),
        (agreeing(20), Verdict.PROCEED),
        (agreeing(20, 0.5), Verdict.PROCEED),
        (agreeing(20, 0.49), Verdict.DISAGREES),
        # 10 of 20 may disagree; the eleventh decides.
        (agreeing(10, 0.0), Verdict.WAIT),
        (agreeing(11, 0.0), Verdict.DISAGREES),
        # 2 of 20 may fail; the third decides.
        ([Run(0.01)] * 2, Verdict.WAIT),
        ([Run(0.01)] * 3, Verdict.FAILS),
        (agreeing(20, candidate_s=0.024), Verdict.PROCEED),
        (agreeing(20, candidate_s=0.026), Verdict.IS_SLOWER),
        # What nothing compares counts for time and failure alone.
        ([Run(0.01, 0.01)] * 20, Verdict.PROCEED),
        ([Run(0.01, 0.026)] * 20, Verdict.IS_SLOWER),
        ([*agreeing(9, 0.49), *[Run(0.01, 0.01)] * 11], Verdict.DISAGREES),
    ],
)
def test_the_limits(history: list[Run], verdict: Verdict) -> None:
    assert judge(history, 1.0, PLAN, LIMITS) is verdict


@pytest.mark.parametrize(
    ("history", "verdict"),
    [
        (agreeing(3), Verdict.PROCEED),
        (agreeing(3, 0.4), Verdict.DISAGREES),
        ([Run(0.01)], Verdict.FAILS),
        # So few timings say nothing.
        (agreeing(4, candidate_s=5.0), Verdict.PROCEED),
        (agreeing(5, candidate_s=5.0), Verdict.IS_SLOWER),
    ],
)
def test_a_phase_that_its_time_ended_is_judged_by_what_there_was(history: list[Run], verdict: Verdict) -> None:
    assert judge(history, 30.0, PLAN, LIMITS) is verdict


@given(runs, runs, plans, limits, times, times)
def test_what_is_taken_back_early_would_be_taken_back_at_the_end(
    before: list[Run], after: list[Run], plan: Plan, limit: Limits, elapsed_s: float, later_s: float
) -> None:
    early = judge(before, elapsed_s, plan, limit)
    if early in TAKEN_BACK and len(before) < plan.runs and elapsed_s < plan.max_s:
        whole = (before + after)[: plan.runs]
        end = judge(whole, max(later_s, plan.max_s), plan, limit)
        assert end in TAKEN_BACK


@given(runs, plans, limits, times)
def test_a_phase_ends_at_its_last_run_or_its_last_second_and_never_before_unless_taken_back(
    history: list[Run], plan: Plan, limit: Limits, elapsed_s: float
) -> None:
    verdict = judge(history, elapsed_s, plan, limit)
    is_over = len(history) >= plan.runs or elapsed_s >= plan.max_s
    assert (verdict is Verdict.WAIT) <= (not is_over)
    assert (verdict is Verdict.PROCEED) <= is_over
    assert (verdict is Verdict.IS_SLOWER) <= is_over


@given(runs, plans, limits, times)
def test_who_proceeds_has_kept_every_limit(history: list[Run], plan: Plan, limit: Limits, elapsed_s: float) -> None:
    if judge(history, elapsed_s, plan, limit) is not Verdict.PROCEED:
        return
    done = [run for run in history if run.candidate_s is not None]
    compared = [run.agreement for run in history if run.agreement is not None]
    assert len(history) - len(done) <= limit.max_error_ratio * len(history) + 1e-6
    if compared:
        assert sum(compared) / len(compared) >= limit.minimum_agreement - 1e-6
    if len(done) >= 5:
        ratio = limit.max_latency_ratio
        assert (
            median(run.candidate_s or 0.0 for run in done)
            <= ratio * median(run.live_s or 0.0 for run in done) + 0.00501
        )


def test_another_kind_of_processor_says_nothing_of_the_time() -> None:
    runs = [Run(None, 10.0, 1.0)] * 30
    assert judge(runs, 0, Plan(30, 60), Limits(0.0, 2.0, 0.5)) is Verdict.PROCEED


@given(st.integers(1, 200), st.integers(1, 30), limits, seconds)
def test_the_live_version_itself_always_proceeds(count: int, planned: int, limit: Limits, took_s: float) -> None:
    same = [Run(took_s, took_s, 1.0)] * count
    assert judge(same, 0.0, Plan(planned, 1.0), limit) in {Verdict.WAIT, Verdict.PROCEED}
    assert judge(same, 1.0, Plan(planned, 1.0), limit) is Verdict.PROCEED


@given(runs, plans, limits, times)
def test_one_more_failure_never_saves_a_version(
    history: list[Run], plan: Plan, limit: Limits, elapsed_s: float
) -> None:
    if judge(history, elapsed_s, plan, limit) is Verdict.FAILS and len(history) < plan.runs:
        assert judge([*history, Run(0.01)], elapsed_s, plan, limit) is Verdict.FAILS
