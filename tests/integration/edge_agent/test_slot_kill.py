"""A device is killed while a version is on its way: what served before serves after, whatever the moment."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from primespark.core.manifests import SigningKey
from tests.e2e.processes import processes_of
from tests.helpers import rounds, wait_until
from tests.integration.edge_agent.gate import TOKEN, GateOracle, RunningGate
from tests.integration.edge_agent.odd_models import Oddity, make_odd_version, reader, sign
from tests.integration.edge_agent.test_deployment import desire, reported
from tests.integration.edge_agent.test_process import Process, running

KILLS = rounds(3, 60)
LIGHT = {
    "PRIMESPARK_FEATURES__CAPTURE": "false",
    "PRIMESPARK_FEATURES__TELEMETRY": "false",
    "PRIMESPARK_FEATURES__CACHE": "false",
    "PRIMESPARK_SYNC__BATCH_WAIT_S": "0.01",
    "PRIMESPARK_SYNC__RETRY_BASE_S": "0.05",
    "PRIMESPARK_SYNC__RETRY_MAX_S": "0.2",
}
AT_ONCE = {"PRIMESPARK_EDGE__MODELS__SHADOW__MAX_S": "0", "PRIMESPARK_EDGE__MODELS__CANARY__MAX_S": "0"}
FOR_EVER = {"PRIMESPARK_EDGE__MODELS__SHADOW__MAX_S": "3600", "PRIMESPARK_EDGE__MODELS__CANARY__MAX_S": "3600"}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.load_or_create(tmp_path_factory.mktemp("key") / "signing.key")


@pytest.fixture
def oracle(gate: RunningGate, key: SigningKey, tmp_path: Path) -> GateOracle:
    gate.oracle = GateOracle(key)
    folder = tmp_path / "edge" / "edge-1"
    folder.mkdir(parents=True)
    (folder / "enrolment.token").write_text(TOKEN)
    return gate.oracle


def served(device: Process) -> dict[str, Any]:
    """The digit reader in service, as the device itself tells; empty while there is none."""
    with contextlib.suppress(httpx2.HTTPError, OSError):
        found: dict[str, Any] = device.get("/api/v1/inference/stats")["models"].get("digits", {})
        return found
    return {}


def serves_without_cloud(home: Path) -> int:
    """The version that serves after a start, or 0 where none comes."""
    with running(home, **LIGHT, PRIMESPARK_NETWORK__CLOUD_URL="http://127.0.0.1:9") as device:
        with contextlib.suppress(AssertionError):
            wait_until(lambda: served(device), 30)
        return int(served(device).get("version", 0))


@contextlib.contextmanager
def killed(home: Path, url: str, **settings: str) -> Iterator[Process]:
    """A device that is killed at the end; nothing of it is left then."""
    with running(home, **LIGHT, **settings, PRIMESPARK_NETWORK__CLOUD_URL=url) as device:
        yield device
        device.process.kill()
        device.process.wait()
    wait_until(lambda: processes_of(home) == [])


def test_a_kill_at_every_step_leaves_the_live_version(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    first, second = make_odd_version(1, key), sign(2, key, reader(number=2, padding=600_000))
    endless = make_odd_version(3, key, Oddity.ENDLESS)
    for version in (first, second, endless):
        version.leave_in(oracle)
    desire(oracle, {"digits": first.pointer})
    with killed(tmp_path, gate.url):
        wait_until(lambda: reported(oracle).get("state") == "live", 30)

    steps: list[tuple[str, Any, dict[str, str]]] = [
        ("downloading", second, {}),
        ("verifying", endless, {}),
        ("shadow", second, FOR_EVER),
        ("canary", second, {**FOR_EVER, "PRIMESPARK_EDGE__MODELS__SHADOW__REQUESTS": "0"}),
    ]
    for state, version, settings in steps:
        # The manifest is shorter than this, the file longer.
        oracle.blob_stall = 400_000 if state == "downloading" else None
        desire(oracle, {"digits": version.pointer})
        with killed(tmp_path, gate.url, **settings):
            wait_until(
                lambda state=state, version=version: (  # type: ignore[misc]
                    reported(oracle).get("state") == state and reported(oracle)["candidate"] == version.version
                ),
                30,
            )
            if state == "downloading":
                wait_until(lambda: any(part.stat().st_size > 200_000 for part in tmp_path.rglob("*.part")))
        assert serves_without_cloud(tmp_path) == 1, state

    # After all that it is brought to its end.
    with killed(tmp_path, gate.url, **AT_ONCE):
        wait_until(lambda: reported(oracle).get("version") == 2, 30)
    assert serves_without_cloud(tmp_path) == 2
    # What was on the disk at the first kill was not asked for again. There is a second such request where
    # the wish for the next version arrives while the rest of this one is on its way.
    asked = [int(text.removeprefix("bytes=").removesuffix("-")) for text in oracle.blob_ranges if text]
    assert 200_000 < asked[0] <= 400_000
    assert asked == sorted(asked)


@pytest.mark.prove
def test_a_kill_at_any_moment_leaves_the_one_version_or_the_other(
    gate: RunningGate, oracle: GateOracle, key: SigningKey, tmp_path: Path
) -> None:
    chance = random.Random(7)
    version = make_odd_version(1, key)
    version.leave_in(oracle)
    desire(oracle, {"digits": version.pointer})
    with killed(tmp_path, gate.url, **AT_ONCE):
        wait_until(lambda: reported(oracle).get("state") == "live", 30)
    live, moved = 1, 0
    for number in range(2, KILLS + 2):
        version = make_odd_version(number, key)
        version.leave_in(oracle)
        with killed(tmp_path, gate.url, **AT_ONCE) as device:
            wait_until(lambda device=device: served(device), 30)  # type: ignore[misc]
            desire(oracle, {"digits": version.pointer})
            time.sleep(chance.uniform(0.0, 1.2))  # the moment of the kill, not a synchronisation
        found = serves_without_cloud(tmp_path)
        assert found in (live, number)
        live, moved = found, moved + (found == number)
        states = (tmp_path / "edge" / "edge-1" / "models").glob("*.json")
        assert [path.name for path in states] == ["digits.json"]
    assert KILLS < 10 or 0 < moved < KILLS
