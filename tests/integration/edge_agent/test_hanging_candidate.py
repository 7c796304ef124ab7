"""A version that never ends its answer to some pictures: no caller waits for it, and the device still stops in time."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sklearn.datasets import load_digits

from primespark.core.manifests import SigningKey
from primespark.inference.digits import encode_digit_png
from tests.helpers import wait_until
from tests.integration.edge_agent.gate import TOKEN, GateOracle, RunningGate
from tests.integration.edge_agent.odd_models import Oddity, make_odd_version
from tests.integration.edge_agent.test_deployment import desire, reported
from tests.integration.edge_agent.test_process import Process, running
from tests.integration.edge_agent.test_slot_kill import LIGHT


def ask(device: Process, picture: bytes) -> dict[str, Any]:
    key = (device.folder / "local.key").read_text()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/png"}
    answer = httpx2.post(f"{device.url}/api/v1/inference?model=digits", content=picture, headers=headers, timeout=5)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


@pytest.mark.parametrize("phase", ["shadow", "canary"])
def test_a_version_that_hangs_is_taken_back(gate: RunningGate, tmp_path: Path, phase: str) -> None:
    key = SigningKey.load_or_create(tmp_path / "signing.key")
    gate.oracle = oracle = GateOracle(key)
    folder = tmp_path / "edge" / "edge-1"
    folder.mkdir(parents=True)
    (folder / "enrolment.token").write_text(TOKEN)
    good, bad = make_odd_version(1, key), make_odd_version(2, key, Oddity.ENDLESS_LATER)
    for version in (good, bad):
        version.leave_in(oracle)
    digits = load_digits().images
    lit = digits[5].copy()
    lit[0, 0] = 16
    settings = {
        "PRIMESPARK_NETWORK__CLOUD_URL": gate.url,
        "PRIMESPARK_EDGE__INFERENCE__RESULT_CACHE_ENTRIES": "0",
        "PRIMESPARK_EDGE__MODELS__SHADOW__REQUESTS": "1000" if phase == "shadow" else "0",
        "PRIMESPARK_EDGE__MODELS__SHADOW__SHARE": "1",
        "PRIMESPARK_EDGE__MODELS__SHADOW__MAX_S": "3",
        "PRIMESPARK_EDGE__MODELS__CANARY__SHARE": "1",
        "PRIMESPARK_EDGE__MODELS__CANARY__MAX_S": "3",
    }
    with running(tmp_path, **LIGHT, **settings) as device:
        desire(oracle, {"digits": good.pointer})
        wait_until(lambda: reported(oracle).get("version") == 1, 30)
        desire(oracle, {"digits": bad.pointer})
        wait_until(lambda: reported(oracle).get("state") == phase, 30)
        # Both read it; from the next on the thread of the one is gone, and the phase's time does not let it on.
        ask(device, encode_digit_png(digits[0]))
        assert ask(device, encode_digit_png(lit))["model_version"] == 1
        for index in range(30):
            assert ask(device, encode_digit_png(digits[index]))["model_version"] == 1
        wait_until(lambda: reported(oracle).get("error") == "candidate_hangs", 40)
        assert (reported(oracle)["version"], reported(oracle)["state"]) == (1, "live")
        assert ask(device, encode_digit_png(lit))["model_version"] == 1
        device.process.send_signal(signal.SIGTERM)
        assert device.process.wait(10) == 0
