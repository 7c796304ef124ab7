"""Answers already given: known again by model and file, and by nothing less."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from edge_agent.inference_service import Given, InferenceService
from edge_agent.slots.candidate import Candidate
from edge_agent.slots.in_service import Slots
from edge_agent.slots.phases import State
from primespark.core.settings import InferenceSettings
from primespark.errors import InvalidInputError
from primespark.inference.catalog import ModelType
from primespark.inference.models import InputKind, ServedModel
from tests.doubles.fake_engine import FakeEngine


def model(name: str, version: int) -> ServedModel:
    """Answers the mean of the image, and its own version."""
    engine = FakeEngine({"x": (np.uint8, (None, None, 3))}, ("mean",), lambda inputs: [np.asarray(inputs["x"].mean())])
    return ServedModel(
        name, ModelType.CLASSIFICATION, version, f"digest-{version}", ("a",), engine,
        lambda image: [{"label": f"{version}", "score": float(engine.run({"x": image})[0])}],
    )  # fmt: skip


def given(level: int, size: int = 4) -> Given:
    content = bytes([level]) * (size * size * 3)
    decode = partial(np.full, (size, size, 3), level, np.uint8)
    return Given(InputKind.IMAGE, decode, content)


async def test_an_answer_is_known_by_model_and_file() -> None:
    slots = Slots()
    service = InferenceService(slots, InferenceSettings(result_cache_entries=2))
    first = model("m", 1)
    slots.put(first)

    async def ask(what: Given) -> tuple[str, float, bool]:
        found = await service.answer(what, "m", None)
        return found.predictions[0]["label"], found.predictions[0]["score"], found.cached

    assert await ask(given(1)) == ("1", 1, False)
    assert await ask(given(1)) == ("1", 1, True)
    assert await ask(given(2)) == ("1", 2, False)
    # Another version answers for itself.
    slots.put(model("m", 2))
    assert await ask(given(2)) == ("2", 2, False)
    assert await ask(given(2)) == ("2", 2, True)
    # Two are kept: the first of three is gone.
    slots.put(first)
    assert await ask(given(1)) == ("1", 1, False)
    # Hashed beside the event loop.
    assert await ask(given(7, size=400)) == ("1", 7, False)
    assert await ask(given(7, size=400)) == ("1", 7, True)
    service.close()


@pytest.mark.parametrize(("entries", "content"), [(0, b"x"), (5, None)])
async def test_nothing_is_kept_where_nothing_may_be(entries: int, content: bytes | None) -> None:
    slots = Slots()
    slots.put(model("m", 1))
    service = InferenceService(slots, InferenceSettings(result_cache_entries=entries))
    what = Given(InputKind.IMAGE, partial(np.full, (4, 4, 3), 1, np.uint8), content)
    for _ in range(2):
        assert not (await service.answer(what, "m", None)).cached
    service.close()


async def test_a_failure_is_not_kept() -> None:
    slots = Slots()
    slots.put(model("m", 1))
    service = InferenceService(slots, InferenceSettings())
    arrays = [np.zeros(3, np.uint8), np.zeros((4, 4, 3), np.uint8)]
    what = Given(InputKind.IMAGE, lambda: arrays.pop(0), b"same")
    with pytest.raises(InvalidInputError):
        await service.answer(what, "m", None)
    assert not (await service.answer(what, "m", None)).cached
    service.close()


async def test_the_answers_of_a_version_under_trial_are_never_taken_for_the_live_versions() -> None:
    slots = Slots()
    service = InferenceService(slots, InferenceSettings())
    candidate = Candidate(model("m", 1), model("m", 2), service.is_idle, lambda: None)
    slots.put(candidate)

    async def ask() -> tuple[str, str, bool]:
        found = await service.answer(given(1), "m", None)
        return found.predictions[0]["label"], found.model_digest, found.cached

    candidate.begin(State.CANARY, 1.0)
    assert await ask() == ("2", "digest-2", False)
    candidate.end()
    assert candidate.join(10)
    assert await ask() == ("1", "digest-1", False)
    assert await ask() == ("1", "digest-1", True)
    # What the version answered in canary is its own, also once it is live.
    slots.put(model("m", 2))
    assert await ask() == ("2", "digest-2", True)
    service.close()
