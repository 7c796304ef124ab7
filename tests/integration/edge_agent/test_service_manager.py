"""A device under a service manager: what it tells, and when it falls silent; and the unit that is shipped."""

from __future__ import annotations

import asyncio
import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_agent import service_manager
from primespark.errors import UnavailableError
from tests.kafka.brokers import free_port

UNIT = Path(__file__).parents[3] / "deploy" / "systemd" / "primespark-edge.service"


@pytest.fixture
def manager() -> Iterator[tuple[socket.socket, str]]:
    """The socket of a service manager, and its address."""
    with tempfile.TemporaryDirectory(prefix="ps-") as folder, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours:
        ours.settimeout(20)
        ours.bind(f"{folder}/notify")
        yield ours, f"{folder}/notify"


def test_a_device_tells_that_it_is_ready_alive_and_stopping(manager: tuple[socket.socket, str], tmp_path: Path) -> None:
    told, address = manager
    environment = {
        **os.environ, "PRIMESPARK_HOME": str(tmp_path), "PRIMESPARK_EDGE__DEVICE_ID": "served",
        "PRIMESPARK_EDGE__PORT": str(free_port()), "PRIMESPARK_FEATURES__CAPTURE": "false",
        "NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000",
    }  # fmt: skip
    environment.pop("WATCHDOG_PID", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "primespark.cli.main", "edge"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        words = [told.recv(100)]
        while words.count(b"WATCHDOG=1") < 4 or b"READY=1" not in words:
            words.append(told.recv(100))
        process.send_signal(signal.SIGTERM)
        while words[-1] != b"STOPPING=1":
            words.append(told.recv(100))
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
    assert words.count(b"READY=1") == 1
    assert set(words) == {b"READY=1", b"WATCHDOG=1", b"STOPPING=1"}


@pytest.fixture
def asked_for(manager: tuple[socket.socket, str], monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    monkeypatch.setenv("NOTIFY_SOCKET", manager[1])
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    return manager[0]


async def test_a_check_that_hangs_ends_the_telling(asked_for: socket.socket) -> None:
    hung, checks = asyncio.Event(), 0

    async def check() -> None:
        nonlocal checks
        checks += 1
        if checks == 2:
            raise UnavailableError("the disk is full")
        if checks == 4:
            hung.set()
            await asyncio.Event().wait()

    telling = asyncio.create_task(service_manager.keep_alive(check))
    await hung.wait()
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    asked_for.setblocking(False)
    assert [asked_for.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    with pytest.raises(BlockingIOError):
        asked_for.recv(100)


@pytest.mark.parametrize("changes", [{"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_PID": "1"}])
async def test_without_a_watchdog_nothing_is_told(
    asked_for: socket.socket, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)

    async def never() -> None:
        raise AssertionError

    await service_manager.keep_alive(never)
    asked_for.setblocking(False)
    with pytest.raises(BlockingIOError):
        asked_for.recv(100)


def test_a_manager_that_is_gone_is_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    service_manager.tell("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    service_manager.tell("READY=1")


def test_the_unit_is_understood_by_systemd() -> None:
    unit = configparser.ConfigParser(strict=False, delimiters="=", allow_no_value=False, interpolation=None)
    unit.read(UNIT)
    assert unit["Service"]["Type"] == "notify"
    assert float(unit["Service"]["WatchdogSec"]) >= 30
    program = shutil.which("systemd-analyze")
    if program is not None:
        verdict = subprocess.run([program, "verify", str(UNIT)], capture_output=True, text=True, check=False)
        faults = [line for line in verdict.stderr.splitlines() if "is not executable" not in line]
        assert faults == []
