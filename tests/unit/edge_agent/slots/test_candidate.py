"""A version under trial sees requests and answers some; nobody who asks can tell, but by the digest."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from edge_agent.slots import candidate as candidate_module
from edge_agent.slots.candidate import Candidate
from edge_agent.slots.phases import Run, State
from primespark.errors import InvalidInputError, UnavailableError
from primespark.inference.catalog import ModelType
from primespark.inference.models import RawInputs, ServedModel
from tests.doubles.fake_engine import FakeEngine
from tests.helpers import wait_until

IMAGE = np.zeros((4, 4, 3), np.uint8)
Answering = Callable[[Any], list[dict[str, Any]]]


def model(version: int, answer: Answering | None = None) -> ServedModel:
    engine = FakeEngine({"x": (np.uint8, (None, None, 3))}, ("y",), lambda _: [np.zeros(1)])
    said = answer or (lambda _: [{"label": "same", "class_id": 0, "score": float(version)}])
    return ServedModel("m", ModelType.CLASSIFICATION, version, f"digest-{version}", ("a",), engine, said)


class Beside:
    """A candidate, and its end."""

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.is_idle = True

    def __call__(self, live: ServedModel, version: ServedModel) -> Candidate:
        made = Candidate(live, version, lambda: self.is_idle, lambda: None)
        self.candidates.append(made)
        return made


@pytest.fixture
def beside() -> Iterator[Beside]:
    beside = Beside()
    yield beside
    for made in beside.candidates:
        made.end()
        assert made.join(10)


def raising(error: Exception) -> Answering:
    def answer(_: Any) -> list[dict[str, Any]]:
        raise error

    return answer


def ask(candidate: Candidate) -> int:
    return candidate.answered(IMAGE).by.version


def observed(candidate: Candidate, count: int) -> list[Run]:
    wait_until(lambda: len(candidate.runs()) >= count and not candidate.is_busy)
    return candidate.runs()


def test_before_and_after_its_phases_it_is_the_live_model(beside: Beside) -> None:
    live = model(1)
    candidate = beside(live, model(2))
    assert (candidate.name, candidate.model_type, candidate.input_kind) == (live.name, live.model_type, live.input_kind)
    assert candidate.current is live
    assert ask(candidate) == 1
    candidate.begin(State.CANARY, 1.0)
    candidate.end()
    assert ask(candidate) == 1
    assert candidate.runs() == []


def test_a_shadow_is_compared_and_never_answers(beside: Beside) -> None:
    candidate = beside(model(1), model(2))
    candidate.begin(State.SHADOW, 1.0)
    for count in range(1, 6):
        assert ask(candidate) == 1
        observed(candidate, count)
    assert [run.agreement for run in candidate.runs()] == [1.0] * 5


def test_a_shadow_delays_no_answer_and_is_left_out_while_work_waits(beside: Beside) -> None:
    opened, entered = threading.Event(), threading.Event()

    def slow(_: Any) -> list[dict[str, Any]]:
        entered.set()
        assert opened.wait(10)
        return [{"label": "same", "class_id": 0, "score": 1.0}]

    candidate = beside(model(1), model(2, slow))
    candidate.begin(State.SHADOW, 1.0)
    beside.is_idle = False
    assert ask(candidate) == 1
    assert not entered.is_set()
    beside.is_idle = True
    assert [ask(candidate) for _ in range(10)] == [1] * 10
    assert entered.wait(10)
    opened.set()
    # One at a time: of ten requests the first alone was seen.
    assert len(observed(candidate, 1)) == 1


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.2, 120, 280), (1.0, 1000, 1000)])
def test_a_canary_answers_its_share(beside: Beside, share: float, least: int, most: int) -> None:
    candidate = beside(model(1), model(2))
    candidate.begin(State.CANARY, share)
    answered = 0
    for _ in range(1000):
        answered += ask(candidate) == 2
        wait_until(lambda: not candidate.is_busy, interval_s=0.0005)
    assert least <= answered <= most
    assert len(candidate.runs()) == answered


@pytest.mark.parametrize("error", [UnavailableError("broken"), RuntimeError("broken"), InvalidInputError("broken")])
def test_a_canary_that_fails_fails_no_caller(beside: Beside, error: Exception) -> None:
    candidate = beside(model(1), model(2, raising(error)))
    for phase in (State.SHADOW, State.CANARY):
        candidate.begin(phase, 1.0)
        for count in range(1, 4):
            assert ask(candidate) == 1
            observed(candidate, count)
        assert [run.candidate_s for run in candidate.runs()] == [None] * 3


def test_an_input_that_the_live_version_refuses_says_nothing_about_the_other(beside: Beside) -> None:
    candidate = beside(model(1, raising(InvalidInputError("not this"))), model(2, raising(InvalidInputError("no"))))
    for phase in (State.SHADOW, State.CANARY):
        candidate.begin(phase, 1.0)
        with pytest.raises(InvalidInputError, match="not this"):
            ask(candidate)
        wait_until(lambda: not candidate.is_busy)
        assert candidate.runs() == []


def test_a_fault_of_the_live_version_is_logged_and_says_nothing_about_the_other(beside: Beside) -> None:
    candidate = beside(model(1, raising(RuntimeError("a fault of ours"))), model(2))
    candidate.begin(State.CANARY, 1.0)
    with capture_logs() as logs:
        assert ask(candidate) == 2
        wait_until(lambda: not candidate.is_busy)
    assert candidate.runs() == []
    assert [log["event"] for log in logs] == ["live_version_failed"]


def test_an_answer_of_another_form_is_a_failure(beside: Beside) -> None:
    candidate = beside(model(1), model(2, lambda _: [{"nonsense": 1}]))
    candidate.begin(State.SHADOW, 1.0)
    assert ask(candidate) == 1
    assert observed(candidate, 1)[0].candidate_s is None


def test_a_canary_that_hangs_holds_nobody_up_and_is_noticed(beside: Beside, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidate_module, "_LEAST_HANGING_S", 0.2)
    opened = threading.Event()

    def hang(_: Any) -> list[dict[str, Any]]:
        assert opened.wait(30)
        return []

    candidate = beside(model(1), model(2, hang))
    candidate.begin(State.CANARY, 1.0)
    started = time.monotonic()
    assert [ask(candidate) for _ in range(50)] == [1] * 50
    # The first waits for its patience, no other does.
    assert time.monotonic() - started < 2
    assert not candidate.join(0)
    wait_until(lambda: candidate.hangs)
    opened.set()
    wait_until(lambda: not candidate.hangs)


def test_a_phase_that_is_paused_begins_no_more_runs_and_keeps_what_it_saw(beside: Beside) -> None:
    candidate = beside(model(1), model(2))
    candidate.begin(State.CANARY, 1.0)
    assert ask(candidate) == 2
    observed(candidate, 1)
    candidate.pause()
    assert ask(candidate) == 1
    assert len(candidate.runs()) == 1


def test_a_new_phase_begins_with_nothing_observed(beside: Beside) -> None:
    candidate = beside(model(1), model(2))
    candidate.begin(State.SHADOW, 1.0)
    ask(candidate)
    observed(candidate, 1)
    candidate.begin(State.CANARY, 1.0)
    assert candidate.runs() == []
    assert ask(candidate) == 2


def test_many_threads_may_ask_at_once(beside: Beside) -> None:
    candidate = beside(model(1), model(2))
    candidate.begin(State.CANARY, 0.5)
    versions: list[int] = []

    def asking() -> None:
        versions.extend(ask(candidate) for _ in range(300))

    threads = [threading.Thread(target=asking) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    wait_until(lambda: not candidate.is_busy)
    assert len(versions) == 1200
    assert set(versions) == {1, 2}
    assert len(candidate.runs()) == versions.count(2)


RAW = {"x": np.zeros((2, 2, 3), np.uint8)}


def network(version: int, function: Callable[[Any], Any] | None = None, output: str = "y") -> ServedModel:
    """A version whose network gives its number."""
    engine = FakeEngine(
        {"x": (np.uint8, (None, None, 3))}, (output,), function or (lambda _: [np.full(1, version, np.float32)])
    )
    return ServedModel("m", ModelType.CLASSIFICATION, version, f"digest-{version}", ("a",), engine, lambda _: [])


def compute(candidate: Candidate, is_version_named: bool = False) -> int:
    found = candidate.computed(RawInputs(RAW, candidate.current, is_version_named))
    assert found.outputs[0].tolist() == [found.by.version]
    return found.by.version


def test_a_canary_answers_raw_tensors_too_and_they_count_without_agreement(beside: Beside) -> None:
    candidate = beside(network(1), network(2))
    candidate.begin(State.CANARY, 1.0)
    assert compute(candidate) == 2
    (run,) = observed(candidate, 1)
    assert (run.agreement, run.live_s is None, run.candidate_s is None) == (None, False, False)


def test_a_share_of_raw_tensors_is_a_share(beside: Beside) -> None:
    candidate = beside(network(1), network(2))
    candidate.begin(State.CANARY, 0.2)
    answered = 0
    for _ in range(1000):
        answered += compute(candidate) == 2
        wait_until(lambda: not candidate.is_busy, interval_s=0.0005)
    assert 120 <= answered <= 280


def test_a_named_version_is_answered_by_that_version_alone(beside: Beside) -> None:
    candidate = beside(network(1), network(2))
    candidate.begin(State.CANARY, 1.0)
    assert [compute(candidate, is_version_named=True) for _ in range(20)] == [1] * 20
    assert candidate.runs() == []


def test_a_version_with_other_tensors_is_not_asked_raw_ones(beside: Beside) -> None:
    candidate = beside(network(1), network(2, output="z"))
    candidate.begin(State.CANARY, 1.0)
    assert [compute(candidate) for _ in range(20)] == [1] * 20
    assert candidate.runs() == []


@pytest.mark.parametrize("error", [UnavailableError("broken"), RuntimeError("broken"), InvalidInputError("broken")])
def test_a_canary_that_fails_on_raw_tensors_fails_no_caller_and_is_counted(beside: Beside, error: Exception) -> None:
    def fail(_: Any) -> list[Any]:
        raise error

    candidate = beside(network(1), network(2, fail))
    candidate.begin(State.CANARY, 1.0)
    for count in range(1, 4):
        assert compute(candidate) == 1
        observed(candidate, count)
    assert [run.candidate_s for run in candidate.runs()] == [None] * 3


def test_raw_tensors_that_the_live_version_refuses_say_nothing_about_the_other(beside: Beside) -> None:
    def refuse(_: Any) -> list[Any]:
        raise InvalidInputError("not this")

    candidate = beside(network(1, refuse), network(2, refuse))
    candidate.begin(State.CANARY, 1.0)
    with pytest.raises(InvalidInputError, match="not this"):
        compute(candidate)
    wait_until(lambda: not candidate.is_busy)
    assert candidate.runs() == []


def test_a_shadow_sees_no_raw_tensors(beside: Beside) -> None:
    version = network(2)
    candidate = beside(network(1), version)
    candidate.begin(State.SHADOW, 1.0)
    assert [compute(candidate) for _ in range(20)] == [1] * 20
    assert not candidate.is_busy
    assert (candidate.runs(), version.engine.runs) == ([], 0)  # type: ignore[attr-defined]
