"""A device in full work gets one version after the other, some bad: no request suffers, each bad one goes back."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import onnxruntime as ort
import pytest
from sklearn.datasets import load_digits

from primespark.core.identifiers import sha256_hex
from primespark.core.manifests import SigningKey
from primespark.inference.digits import encode_digit_png
from tests.helpers import rounds
from tests.integration.edge_agent.digits import Version
from tests.integration.edge_agent.gate import TOKEN, GateOracle, RunningGate, serve_gate
from tests.integration.edge_agent.odd_models import INPUTS, Oddity, make_odd_version
from tests.integration.edge_agent.test_deployment import desire, reported
from tests.integration.edge_agent.test_process import Process, running

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
BAD = ("digest", "signature", "shape", "slow", "worse")
REASONS = {
    "digest": "digest_mismatch", "signature": "untrusted_signature", "shape": "wrong_shape",
    "slow": "candidate_slower", "worse": "candidate_disagrees",
}  # fmt: skip


@dataclass(slots=True)
class Load:
    """What was asked and answered."""

    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@pytest.fixture
def gate() -> Iterator[RunningGate]:
    with serve_gate() as served:
        yield served


def version_of(number: int, key: SigningKey, strangers_key: SigningKey) -> tuple[Version, str | None]:
    """A version, and what is bad about it."""
    bad = BAD[(number // BAD_EVERY - 1) % len(BAD)] if number % BAD_EVERY == 0 else None
    if bad == "signature":
        return make_odd_version(number, strangers_key), bad
    if bad == "shape":
        return make_odd_version(number, key, inputs=(INPUTS[0].model_copy(update={"shape": (None, 81)}),)), bad
    oddities = {"slow": Oddity.SLOW, "worse": Oddity.WORSE}
    return make_odd_version(number, key, oddities.get(bad or "", Oddity.NONE)), bad


@contextlib.asynccontextmanager
async def under_load(device: Process) -> AsyncIterator[Load]:
    """Clients that ask again as soon as they are answered."""
    load = Load()
    headers = {"Authorization": f"Bearer {(device.folder / 'local.key').read_text()}", "Content-Type": "image/png"}
    pictures = [encode_digit_png(digit) for digit in load_digits().images]

    async def asking(client: httpx2.AsyncClient, chance: random.Random) -> None:
        while True:
            index = chance.randrange(len(pictures))
            answer = await client.post("/api/v1/inference?model=digits", content=pictures[index], headers=headers)
            if answer.status_code == 200:
                load.answers.append((index, answer.json()))
            else:
                load.failures.append(f"{answer.status_code}: {answer.text}")

    async with httpx2.AsyncClient(base_url=device.url, timeout=30) as client:
        tasks = [asyncio.create_task(asking(client, random.Random(seed))) for seed in range(CLIENTS)]
        try:
            yield load
            assert not any(task.done() for task in tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Any, timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is watched belongs to another thread)
            await asyncio.sleep(0.01)


def expected_of(versions: dict[str, Version]) -> dict[str, tuple[list[int], list[float]]]:
    """Label and score of every digit by each version's digest, without the device."""
    features = (load_digits().data / 16).astype(np.float32)
    expected = {}
    for digest, version in versions.items():
        labels, scores = ort.InferenceSession(version.onnx).run(None, {"input": features})
        powers = np.exp(scores.astype(np.float64) - scores.max(axis=1, keepdims=True))
        sure = (powers / powers.sum(axis=1, keepdims=True))[np.arange(len(labels)), labels]
        expected[digest] = (labels.tolist(), sure.tolist())
    return expected


@pytest.mark.prove
async def test_swaps_under_load_fail_no_request_and_take_every_bad_version_back(
    gate: RunningGate, tmp_path: Path
) -> None:
    key, strangers_key = (SigningKey.load_or_create(tmp_path / name) for name in ("signing.key", "strangers.key"))
    gate.oracle = oracle = GateOracle(key)
    folder = tmp_path / "edge" / "edge-1"
    folder.mkdir(parents=True)
    (folder / "enrolment.token").write_text(TOKEN)
    versions: dict[str, Version] = {}
    with running(tmp_path, **SETTINGS, PRIMESPARK_NETWORK__CLOUD_URL=gate.url) as device:
        first = make_odd_version(1, key)
        await swap(oracle, versions, first, None, 0)
        live, taken_back = 1, []
        async with under_load(device) as load:
            for number in range(2, SWAPS + 2):
                version, bad = version_of(number, key, strangers_key)
                before = len(load.answers)
                await swap(oracle, versions, version, bad, live)
                if bad is None:
                    live = number
                else:
                    taken_back.append(bad)
                # It goes on being asked.
                await until(lambda before=before: len(load.answers) > before + CLIENTS)
            end = len(load.answers)
            await until(lambda: len(load.answers) > end + 10 * CLIENTS)
    assert load.failures == []
    assert sorted(taken_back) == sorted(BAD)
    check_answers(load, versions, end, live)


async def swap(oracle: GateOracle, versions: dict[str, Version], version: Version, bad: str | None, live: int) -> None:
    """Desire a version and wait for what must become of it."""
    versions[sha256_hex(version.onnx)] = version
    version.leave_in(oracle)
    if bad == "digest":
        oracle.blobs[sha256_hex(version.onnx)] = version.onnx[:-1] + b"!"
    desire(oracle, {"digits": version.pointer})
    if bad is None:
        await until(lambda: reported(oracle).get("version") == version.version or told(oracle, version))
        assert (reported(oracle)["version"], told(oracle, version)) == (version.version, None)
        return
    await until(lambda: told(oracle, version))
    assert (told(oracle, version), reported(oracle)["version"]) == (REASONS[bad], live)


def told(oracle: GateOracle, version: Version) -> str | None:
    """Why a version does not serve, once the device says so."""
    found = reported(oracle)
    return found.get("error") if found.get("candidate") == version.version else None


def check_answers(load: Load, versions: dict[str, Version], end: int, live: int) -> None:
    """Every answer is that of the version whose digest it carries, and bad ones answered nothing but in canary."""
    expected = expected_of(versions)
    for index, answer in load.answers:
        labels, scores = expected[answer["model_digest"]]
        best = answer["predictions"][0]
        assert best["label"] == str(labels[index])
        assert best["score"] == pytest.approx(scores[index], abs=2e-4)
        assert answer["model_version"] == versions[answer["model_digest"]].version
    answered = {answer["model_version"] for _, answer in load.answers}
    by_kind = {number: BAD[(number // BAD_EVERY - 1) % len(BAD)] for number in range(BAD_EVERY, SWAPS + 2, BAD_EVERY)}
    good = set(range(1, SWAPS + 2)) - by_kind.keys()
    assert answered >= good
    # What is refused before its canary never answers anybody.
    assert all(by_kind[number] in ("slow", "worse") for number in answered - good)
    assert {answer["model_version"] for _, answer in load.answers[end:]} == {live}
