"""`primespark up`: however it ends, nothing of it stays."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from primespark.embedded.stack import claim_home
from tests.e2e.processes import processes_of
from tests.helpers import wait_until

PARTS = "postgres,valkey,broker,cloud,streams,edge"
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "primespark.cli.main", "up", *arguments],
            env={**os.environ, "PRIMESPARK_HOME": str(tmp_path / "home"), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_ready(process: subprocess.Popen[str]) -> None:
    """Read what it says until it says that everything runs."""
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            return
    raise AssertionError(process.stderr.read() if process.stderr else "ended")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_everything(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    process = start("--only", PARTS)
    wait_ready(process)
    assert len(processes_of(tmp_path / "home")) >= 7
    process.send_signal(number)
    assert process.wait(15) == 0
    assert processes_of(tmp_path / "home") == []


def test_a_signal_does_not_wait_for_sensors_that_wait(start: Start, tmp_path: Path) -> None:
    process = start("--only", "postgres,dagster")
    wait_ready(process)
    engine = create_engine((tmp_path / "home" / "run" / "store.url").read_text())

    def sensors_wait() -> bool:
        query = text("SELECT count(*) FROM pg_stat_activity WHERE query = 'LISTEN \"pipeline_stage\"'")
        with engine.connect() as connection:
            return bool(connection.execute(query).scalar_one() == 2)

    wait_until(sensors_wait, timeout_s=30)
    engine.dispose()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.stderr is not None
    assert "service_killed" not in process.stderr.read()
    assert processes_of(tmp_path / "home") == []


def test_nothing_outlives_a_killed_supervisor(start: Start, tmp_path: Path) -> None:
    process = start("--only", PARTS)
    wait_ready(process)
    process.kill()
    wait_until(lambda: processes_of(tmp_path / "home") == [], timeout_s=10)
    again = start("--only", PARTS)
    wait_ready(again)


def test_one_at_a_time(start: Start) -> None:
    first = start("--only", "valkey")
    wait_ready(first)
    _, said = start("--only", "valkey").communicate(timeout=15)
    assert "already running" in said
    assert "Traceback" not in said


def test_a_demo_leaves_the_state_of_a_running_one_alone(start: Start, tmp_path: Path) -> None:
    kept = tmp_path / "home" / "demo" / "cameras"
    kept.mkdir(parents=True)
    claim = claim_home(tmp_path / "home" / "demo")
    process = subprocess.run(
        [sys.executable, "-m", "primespark.cli.main", "demo"],
        env={**os.environ, "PRIMESPARK_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    claim.close()
    assert process.returncode == 1
    assert f"already running on {tmp_path / 'home' / 'demo'} (process {os.getpid()})" in process.stderr
    assert kept.exists()


def test_a_port_that_is_taken_is_told(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        process = start("--only", "postgres,cloud", PRIMESPARK_CLOUD__PORT=str(port))
        wait_ready(process)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=15)
    assert f"port {port} is taken: cloud listens on " in said


def test_a_part_without_what_it_needs_says_what(start: Start) -> None:
    process = start("--only", "cloud")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "store.url, which cannot be read" in said


def test_a_damaged_store_is_told_and_ends_all(start: Start, tmp_path: Path) -> None:
    version = tmp_path / "home" / "postgres" / "data" / "PG_VERSION"
    version.parent.mkdir(parents=True)
    version.write_bytes(b"\xff")
    process = start("--only", "postgres,valkey")
    _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "postgres did not start" in said
    assert processes_of(tmp_path / "home") == []


def test_an_unknown_part_is_told(start: Start) -> None:
    process = start("--only", "grafana")
    _, said = process.communicate(timeout=15)
    assert process.returncode == 1
    assert "no such part: grafana" in said


def test_features_that_are_off_start_nothing(start: Start, tmp_path: Path) -> None:
    process = start(PRIMESPARK_FEATURES__STREAMS="false", PRIMESPARK_FEATURES__CACHE="false",
                    PRIMESPARK_FEATURES__ORCHESTRATION="false")  # fmt: skip
    wait_ready(process)
    running = " ".join(processes_of(tmp_path / "home"))
    assert "cloud" in running
    for absent in ("valkey", "noida", "dagster", "streams"):
        assert absent not in running
