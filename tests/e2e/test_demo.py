"""The closed loop as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.processes import processes_of

KEYS = {
    "frames", "p50_ms", "queued_offline", "delivered", "duplicates", "lost", "windows", "windows_checked",
    "windows_equal", "rollup_rows", "dagster_runs", "materializations", "model", "redeploy_s", "first_result_s",
    "total_s", "checks", "ok",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of the demo left."""

    home: Path
    process: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    home = tmp_path_factory.mktemp("demo")
    process = subprocess.run(
        [sys.executable, "-m", "primespark.cli.main", "demo", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "PRIMESPARK_HOME": str(home)},
        timeout=400,
        check=False,
    )
    return Outcome(home, process)


def test_every_check_of_the_demo_holds(outcome: Outcome) -> None:
    assert outcome.process.returncode == 0, outcome.process.stderr + outcome.process.stdout
    report = json.loads(outcome.process.stdout)
    assert report.keys() >= KEYS
    assert report["ok"], report["checks"]
    assert (report["lost"], report["duplicates"]) == (0, 0)
    assert report["windows_equal"]
    assert report["windows_checked"] >= 100
    assert report["model"]["after"]["accuracy"] > report["model"]["before"]["accuracy"]
    assert report["model"]["after"]["accuracy"] >= 0.97


def test_the_demo_leaves_no_process_behind(outcome: Outcome) -> None:
    assert processes_of(outcome.home) == []
