"""A device that starts with no network, no names and a wrong clock works; what it saw arrives once all are back."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from primespark.core.clock import utc_now
from tests.helpers import wait_until
from tests.integration.edge_agent.gate import RunningGate
from tests.integration.edge_agent.test_process import running


def alone(home: Path, clock: str) -> dict[str, Any]:
    if shutil.which("faketime") is None or shutil.which("unshare") is None:
        pytest.skip("no faketime (Debian: faketime) or no unshare (util-linux)")
    own = ["unshare", "--map-root-user", "--net", "--mount"]
    command = [*own, sys.executable, "-m", f"{__package__}.islanded", str(home), clock]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert finished.returncode == 0, f"{finished.stderr}\n{(home / 'edge.log').read_text()}"
    said: dict[str, Any] = json.loads(finished.stdout)
    return said


@pytest.mark.parametrize("clock", ["@2012-03-01 12:00:00", "@2043-03-01 12:00:00"])
def test_alone_with_a_wrong_clock_it_infers_and_keeps_what_it_saw(
    gate: RunningGate, tmp_path: Path, clock: str
) -> None:
    began = utc_now()
    said = alone(tmp_path, clock)
    assert "cup" in said["labels"]
    assert (said["health"]["status"], said["health"]["cloud"]) == ("healthy", "offline")
    assert (said["sync"]["code"], said["sync"]["remedy"]) == ("not_connected", "check the link")
    assert "name resolution" in said["sync"]["cause"]
    doctor = said["doctor"]
    assert doctor["cloud"]["state"] == "bad"
    assert doctor["cloud"]["found"].startswith("cloud.prime-spark.example:443 does not answer")
    assert "name resolution" in doctor["cloud"]["found"]
    assert doctor["clock"]["found"].startswith(clock[1:11])
    # A clock behind the release is wrong for certain; one ahead of it cannot be told without another.
    assert (doctor["clock"]["state"] == "bad") == (clock < "@2026")
    oldest = said["waiting"][0]
    assert oldest["time"][:10] == clock[1:11]
    kept = {stream: state["pending"] for stream, state in said["offline"]["streams"].items()}
    assert min(kept["telemetry"], kept["inference_results"]) > 0

    oracle = gate.oracle
    with running(tmp_path, PRIMESPARK_NETWORK__CLOUD_URL=gate.url):
        wait_until(lambda: all(sum(f["stream"] == name for f in oracle.facts) > n for name, n in kept.items()), 60)
    for stream in kept:
        facts = [fact for fact in oracle.facts if fact["stream"] == stream]
        assert [fact["seq"] for fact in facts] == list(range(1, len(facts) + 1))
    assert not oracle.lost
    first = next(fact for fact in oracle.facts if (fact["stream"], fact["seq"]) == (oldest["stream"], 1))
    # Its clock was wrong; what it measured has its true time once the cloud has told it.
    assert first["quality"] == "clock_repaired"
    assert began <= datetime.fromisoformat(first["time"]) <= utc_now()
