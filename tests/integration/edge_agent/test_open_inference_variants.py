"""Which variant answers Triton's client: a version in canary its share, a standby for a chip that fails."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from sklearn.datasets import load_digits
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

from edge_agent.agent import _build
from edge_agent.database import Database
from edge_agent.standby import StandbyModel
from primespark.core.manifests import SigningKey
from primespark.core.settings import load_settings
from primespark.core.web.server import bind
from primespark.errors import UnavailableError
from primespark.inference.catalog import ModelType
from primespark.inference.models import ServedModel
from tests.doubles.fake_engine import FakeEngine
from tests.helpers import wait_until
from tests.integration.edge_agent.gate import TOKEN, GateOracle, RunningGate, serve_on_thread
from tests.integration.edge_agent.odd_models import Oddity, make_odd_version
from tests.integration.edge_agent.test_deployment import desire, reported
from tests.integration.edge_agent.test_open_inference import Key
from tests.integration.edge_agent.test_process import Process, running
from tests.integration.edge_agent.test_slot_kill import FOR_EVER, LIGHT

DIGITS = (load_digits().data / 16).astype(np.float32)
CANARY = {
    "PRIMESPARK_EDGE__MODELS__SHADOW__REQUESTS": "0",
    "PRIMESPARK_EDGE__MODELS__CANARY__SHARE": "0.5",
    "PRIMESPARK_EDGE__MODELS__MAX_LATENCY_RATIO": "20",
}


@contextlib.contextmanager
def client_of(url: str, folder: Path) -> Iterator[Any]:
    with InferenceServerClient(url.removeprefix("http://")) as client:
        client.register_plugin(Key((folder / "local.key").read_text()))
        yield client


def ask(client: Any, row: int, version: str = "") -> tuple[str, int]:
    """The version that answered, and the digit it saw."""
    tensor = InferInput("input", [1, 64], "FP32").set_data_from_numpy(DIGITS[row % 100][np.newaxis])
    found = client.infer("digits", [tensor], model_version=version)
    return found.get_response()["model_version"], int(found.as_numpy("label")[0])


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey.load_or_create(tmp_path / "signing.key")


@contextlib.contextmanager
def in_canary(
    gate: RunningGate, key: SigningKey, home: Path, oddity: Oddity, **settings: str
) -> Iterator[tuple[GateOracle, Process]]:
    """A device whose digit reader 2 is in canary beside 1."""
    gate.oracle = oracle = GateOracle(key)
    folder = home / "edge" / "edge-1"
    folder.mkdir(parents=True)
    (folder / "enrolment.token").write_text(TOKEN)
    live, version = make_odd_version(1, key), make_odd_version(2, key, oddity)
    for one in (live, version):
        one.leave_in(oracle)
    with running(home, **LIGHT, **settings, PRIMESPARK_NETWORK__CLOUD_URL=gate.url) as device:
        desire(oracle, {"digits": live.pointer})
        wait_until(lambda: reported(oracle).get("version") == 1, 30)
        desire(oracle, {"digits": version.pointer})
        wait_until(lambda: reported(oracle).get("state") == "canary", 30)
        yield oracle, device


def test_a_canary_answers_its_share_and_a_named_version_is_that_version(
    gate: RunningGate, key: SigningKey, tmp_path: Path
) -> None:
    with (
        in_canary(gate, key, tmp_path, Oddity.NONE, **{**FOR_EVER, **CANARY}) as (_, device),
        client_of(device.url, device.folder) as client,
    ):
        assert {ask(client, row, version="1")[0] for row in range(30)} == {"1"}
        with pytest.raises(InferenceServerException, match=r"^\[404\] .*there is 1"):
            ask(client, 0, version="2")
        wait_until(lambda: {ask(client, 0)[0] for _ in range(4)} == {"1", "2"}, 30)
        metrics = httpx2.get(f"{device.url}/metrics").text
        assert 'primespark_model_candidate_runs_total{outcome="ok",phase="canary"}' in metrics


def test_a_canary_lets_a_version_on_by_raw_tensors_alone(gate: RunningGate, key: SigningKey, tmp_path: Path) -> None:
    settings = {**FOR_EVER, **CANARY, "PRIMESPARK_EDGE__MODELS__CANARY__REQUESTS": "10"}
    with (
        in_canary(gate, key, tmp_path, Oddity.NONE, **settings) as (oracle, device),
        client_of(device.url, device.folder) as client,
    ):
        answered: list[str] = []

        def asked_until_live() -> bool:
            answered.append(ask(client, len(answered))[0])
            return bool(reported(oracle).get("version") == 2)

        wait_until(asked_until_live, 60)
        assert Counter(answered)["2"] >= 10
        assert ask(client, 0, version="2")[0] == "2"


def test_the_error_of_a_version_in_canary_is_answered_by_the_live_one_and_counted(
    gate: RunningGate, key: SigningKey, tmp_path: Path
) -> None:
    with (
        in_canary(gate, key, tmp_path, Oddity.FAILING, **{**FOR_EVER, **CANARY}) as (oracle, device),
        client_of(device.url, device.folder) as client,
    ):
        answered: list[tuple[str, int]] = []

        def asked_until_back() -> bool:
            answered.append(ask(client, len(answered)))
            return "error" in reported(oracle)

        wait_until(asked_until_back, 60)
        assert (reported(oracle)["error"], reported(oracle)["version"]) == ("candidate_failed", 1)
        # It reads nothing but zeros; at all else it fails, and the other one answers.
        assert {digit for version, digit in answered if version == "2"} <= {0}
        assert {digit for version, digit in answered if version == "1"} - {0}


def variant(device: str, name: str) -> ServedModel:
    """A network of one input of this name; it gives 1 on the accelerator and 0 on the processor."""
    outputs = [np.full(1, device != "cpu", np.float32)]
    engine = FakeEngine({name: (np.float32, (None, 2))}, ("y",), lambda _: outputs, device=device)
    return ServedModel("pair", ModelType.TABULAR, 1, device, (), engine, lambda _: [])


class Pair:
    """A model of two variants, whose accelerator comes back when it may."""

    def __init__(self, names: tuple[str, str]) -> None:
        self.may_return = threading.Event()
        self.may_return.set()
        accelerated, standby = variant("hailo8", names[0]), variant("cpu", names[1])
        self.chip = accelerated.engine
        self.model = StandbyModel("pair", lambda: accelerated, standby, lambda _: self._prove(), None, (0.01, 0.05))

    def leave(self) -> None:
        self.may_return.clear()
        self.chip.fail_with(UnavailableError("gone", remedy="see dmesg", code="accelerator_timeout"))  # type: ignore[attr-defined]

    def _prove(self) -> None:
        assert self.may_return.wait(20)


@contextlib.contextmanager
def served(folder: Path, pair: Pair) -> Iterator[str]:
    """Address of a device with the pair in service, on a thread."""
    none: Future[ServedModel | None] = Future()
    none.set_result(None)
    database = Database(folder / "queue.db")
    settings = load_settings(overrides={"features": {"capture": False, "telemetry": False, "cache": False}})
    agent = asyncio.run(_build(settings, folder, database, none))
    agent.service.slots.put(pair.model)
    listener = bind("127.0.0.1", 0)
    try:
        with serve_on_thread(agent.app, listener):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        pair.may_return.set()
        agent.service.close()
        agent.service.slots.close()
        agent.app.state.preprocessing.close()
        database.close()


def ask_pair(client: Any, name: str) -> tuple[str, float]:
    """The device that answered, and what it gave."""
    found = client.infer("pair", [InferInput(name, [1, 2], "FP32").set_data_from_numpy(np.zeros((1, 2), np.float32))])
    return found.get_response()["parameters"]["device"], float(found.as_numpy("y")[0])


def test_a_standby_of_the_same_tensors_answers_for_a_chip_that_fails(tmp_path: Path) -> None:
    pair = Pair(("x", "x"))
    with served(tmp_path, pair) as url, client_of(url, tmp_path) as client:
        wait_until(lambda: pair.model.fault is None)
        assert ask_pair(client, "x") == ("hailo8", 1.0)
        pair.leave()
        assert [ask_pair(client, "x") for _ in range(3)] == [("cpu", 0.0)] * 3
        pair.may_return.set()
        wait_until(lambda: ask_pair(client, "x") == ("hailo8", 1.0))


def test_where_the_tensors_differ_a_failure_is_told_until_the_chip_is_back(tmp_path: Path) -> None:
    pair = Pair(("on_chip", "on_processor"))
    with served(tmp_path, pair) as url, client_of(url, tmp_path) as client:
        wait_until(lambda: pair.model.fault is None)
        pair.leave()
        for told in ("gone; see dmesg", "pair runs on the processor now .* try again later"):
            with pytest.raises(InferenceServerException, match=rf"^\[503\] .*{told}"):
                ask_pair(client, "on_chip")
        headers = {"Authorization": f"Bearer {(tmp_path / 'local.key').read_text()}"}
        tensor = {"name": "on_chip", "shape": [1, 2], "datatype": "FP32", "data": [0, 0]}
        answer = httpx2.post(f"{url}/v2/models/pair/infer", json={"inputs": [tensor]}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "accelerator_unavailable")
        assert int(answer.headers["Retry-After"]) > 0
        # Who asks again what the model takes is answered meanwhile.
        assert client.get_model_metadata("pair")["inputs"][0]["name"] == "on_processor"
        assert ask_pair(client, "on_processor") == ("cpu", 0.0)
        with pytest.raises(InferenceServerException, match=r"^\[422\] "):
            ask_pair(client, "neither")
        pair.may_return.set()
        wait_until(lambda: pair.model.fault is None)
        assert ask_pair(client, "on_chip") == ("hailo8", 1.0)
