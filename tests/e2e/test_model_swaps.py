"""A device in full work gets one version after the other, some bad: no request suffers, each bad one goes back.

Cloud, store and device are the processes a user starts; each version is trained for the occasion, and published,
fetched and reported as any other.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnxruntime as ort
import pytest
from sklearn.datasets import load_digits
from sqlalchemy import Engine

from primespark.cli.demo.clients import until
from primespark.core.identifiers import sha256_hex
from primespark.core.paths import private_directory, write_private
from primespark.core.settings import load_settings
from primespark.embedded.stack import AgentSpec, Stack
from primespark.inference.digits import encode_digit_png
from primespark.store import devices
from tests.e2e.publishing import Damage, Publisher
from tests.helpers import rounds
from tests.integration.edge_agent.odd_models import Oddity, reader

# Every tenth of fifty is bad, in the short form every other of ten: each kind once.
SWAPS, BAD_EVERY = rounds(10, 50), rounds(2, 10)
CLIENTS = 4
SETTINGS = {
    "PRIMESPARK_FEATURES__CAPTURE": "false",
    "PRIMESPARK_FEATURES__TELEMETRY": "false",
    "PRIMESPARK_SYNC__BATCH_WAIT_S": "0.01",
    "PRIMESPARK_SYNC__RETRY_BASE_S": "0.05",
    "PRIMESPARK_EDGE__MODELS__SHADOW__SHARE": "1",
    "PRIMESPARK_EDGE__MODELS__SHADOW__REQUESTS": "10",
    "PRIMESPARK_EDGE__MODELS__SHADOW__MAX_S": "0.5",
    "PRIMESPARK_EDGE__MODELS__CANARY__SHARE": "0.5",
    "PRIMESPARK_EDGE__MODELS__CANARY__REQUESTS": "20",
    "PRIMESPARK_EDGE__MODELS__CANARY__MAX_S": "60",
    # The processors are shared: an equal version may well be several times slower in twenty runs.
    "PRIMESPARK_EDGE__MODELS__MAX_LATENCY_RATIO": "20",
}
BAD = (Damage.DIGEST, Damage.SIGNATURE, Damage.SHAPE, Oddity.SLOW, Oddity.WORSE)
REASONS: dict[Damage | Oddity, str] = {
    Damage.DIGEST: "digest_mismatch", Damage.SIGNATURE: "untrusted_signature", Damage.SHAPE: "wrong_shape",
    Oddity.SLOW: "candidate_slower", Oddity.WORSE: "candidate_disagrees",
}  # fmt: skip


@dataclass(slots=True)
class Load:
    """What was asked and answered."""

    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Fleet:
    """The cloud as its operator has it, and what was published.

    Attributes:
        client: Of the cloud's API.
        publisher: Of versions.
        versions: Number and file of each by its digest.
    """

    client: httpx2.AsyncClient
    publisher: Publisher
    versions: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    async def publish(self, number: int, bad: Damage | Oddity | None) -> None:
        onnx = reader(bad if isinstance(bad, Oddity) else Oddity.NONE, number)
        self.versions[sha256_hex(onnx)] = (number, onnx)
        damage = bad if isinstance(bad, Damage) else None
        assert await asyncio.to_thread(self.publisher.publish, onnx, damage) == number

    async def is_enrolled(self) -> bool:
        answer = await self.client.get("/api/v1/devices")
        return bool(answer.raise_for_status().json()["items"])

    async def reported(self) -> dict[str, Any]:
        """What the device reported of its digit reader."""
        answer = await self.client.get("/api/v1/devices/edge-1/records/configurations/twin")
        models = answer.raise_for_status().json()["value"].get("reported", {}).get("models", {})
        return dict(models.get("digits") or {})

    async def outcome(self, number: int) -> tuple[int | None, str | None]:
        """Which version serves once one of this number is live or refused, and why it is refused."""
        async with asyncio.timeout(60):
            while True:
                found = await self.reported()
                error = found.get("error") if found.get("candidate") == number else None
                if error is not None or found.get("version") == number:
                    return found.get("version"), error
                await asyncio.sleep(0.02)  # the pace of who looks


@pytest.fixture
async def stack(
    store_engine: Engine, postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stack]:
    home = tmp_path / "home"
    # As the code location finds the cloud it publishes to.
    monkeypatch.setenv("PRIMESPARK_HOME", str(home))
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", postgres_url)
    with store_engine.begin() as connection:
        token = devices.create_token(connection, 1, timedelta(hours=1))
    write_private(private_directory(home / "edge" / "edge-1") / "enrolment.token", token.encode())
    settings = load_settings(overrides={"cloud": {"port": 0}, "edge": {"port": 0}})
    agents = (AgentSpec("edge-1", environment=SETTINGS),)
    stack = Stack(settings, home, agents=agents, only=("cloud", "edge"))
    try:
        await stack.start()
        yield stack
    finally:
        await stack.stop()


@pytest.fixture
async def fleet(stack: Stack) -> AsyncIterator[Fleet]:
    headers = {"Authorization": f"Bearer {stack.admin_key_file.read_text()}"}
    async with httpx2.AsyncClient(base_url=stack.endpoints["cloud"], headers=headers, timeout=30) as client:
        fleet = Fleet(client, await asyncio.to_thread(Publisher))
        await until("the device to enrol", fleet.is_enrolled, 60)
        yield fleet


@contextlib.asynccontextmanager
async def under_load(stack: Stack) -> AsyncIterator[Load]:
    """Clients that ask again as soon as they are answered."""
    load = Load()
    headers = {"Authorization": f"Bearer {stack.key_file('edge-1').read_text()}", "Content-Type": "image/png"}
    pictures = [encode_digit_png(digit) for digit in load_digits().images]

    async def asking(client: httpx2.AsyncClient, chance: random.Random) -> None:
        while True:
            index = chance.randrange(len(pictures))
            answer = await client.post("/api/v1/inference?model=digits", content=pictures[index], headers=headers)
            if answer.status_code == 200:
                load.answers.append((index, answer.json()))
            else:
                load.failures.append(f"{answer.status_code}: {answer.text}")

    async with httpx2.AsyncClient(base_url=stack.endpoints["edge-1"], timeout=30) as client:
        tasks = [asyncio.create_task(asking(client, random.Random(seed))) for seed in range(CLIENTS)]
        try:
            yield load
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def answered(load: Load, more: int) -> None:
    """Wait for so many further answers."""
    enough = len(load.answers) + more

    async def is_enough() -> bool:
        return len(load.answers) >= enough

    await until("further answers", is_enough, 60, 0.01)


def bad_of(number: int) -> Damage | Oddity | None:
    """What is bad about a version."""
    return BAD[(number // BAD_EVERY - 1) % len(BAD)] if number % BAD_EVERY == 0 else None


@pytest.mark.prove
async def test_swaps_under_load_fail_no_request_and_take_every_bad_version_back(stack: Stack, fleet: Fleet) -> None:
    await fleet.publish(1, None)
    assert await fleet.outcome(1) == (1, None)
    live, taken_back = 1, []
    async with under_load(stack) as load:
        for number in range(2, SWAPS + 2):
            bad = bad_of(number)
            await fleet.publish(number, bad)
            if bad is None:
                live = number
                assert await fleet.outcome(number) == (number, None)
            else:
                taken_back.append(bad)
                assert await fleet.outcome(number) == (live, REASONS[bad])
            # It goes on being asked.
            await answered(load, CLIENTS)
        end = len(load.answers)
        await answered(load, 10 * CLIENTS)
    assert load.failures == []
    assert sorted(taken_back) == sorted(BAD)
    check_answers(load, fleet.versions, end, live)


def expected_of(versions: dict[str, tuple[int, bytes]]) -> dict[str, tuple[list[int], list[float]]]:
    """Label and score of every digit by each version's digest, without the device."""
    features = (load_digits().data / 16).astype(np.float32)
    expected = {}
    for digest, (_, onnx) in versions.items():
        labels, scores = ort.InferenceSession(onnx).run(None, {"input": features})
        powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
        sure = (powers / powers.sum(axis=1, keepdims=True))[np.arange(len(labels)), labels]
        expected[digest] = (labels.tolist(), sure.tolist())
    return expected


def check_answers(load: Load, versions: dict[str, tuple[int, bytes]], end: int, live: int) -> None:
    """Every answer is that of the version whose digest it carries, and bad ones answered nothing but in canary."""
    expected = expected_of(versions)
    for index, answer in load.answers:
        labels, scores = expected[answer["model_digest"]]
        best = answer["predictions"][0]
        assert best["label"] == str(labels[index])
        assert best["score"] == pytest.approx(scores[index], abs=2e-4)
        assert answer["model_version"] == versions[answer["model_digest"]][0]
    answered_by = {answer["model_version"] for _, answer in load.answers}
    good = {number for number in range(1, SWAPS + 2) if bad_of(number) is None}
    assert answered_by >= good
    # What is refused before its canary never answers anybody.
    assert all(bad_of(number) in (Oddity.SLOW, Oddity.WORSE) for number in answered_by - good)
    assert {answer["model_version"] for _, answer in load.answers[end:]} == {live}
