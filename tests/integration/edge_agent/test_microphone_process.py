"""Microphones recorded by real processes, through ALSA: what they hear, and what becomes of them when they hang."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import pytest

from edge_agent.microphone.process import MicrophoneProcess, open_microphone
from primespark.core.capture_settings import SourceSettings
from primespark.errors import MissingDependencyError, PrimeSparkError, UnavailableError
from tests.helpers import wait_until
from tests.integration.edge_agent.microphones import (
    RATE_HZ,
    microphone,
    needs_alsa,
    open_pipe,
    recording,
    silence,
)


def desk(silence_s: float = 10.0, name: str = "desk") -> SourceSettings:
    return SourceSettings(name="desk", microphone=name, silence_s=silence_s)


async def fault_of(source: SourceSettings) -> PrimeSparkError:
    with pytest.raises(PrimeSparkError) as caught:
        await listen(source)
    return caught.value


async def listen(source: SourceSettings) -> None:
    async with open_microphone(source) as recorder:
        await listen_on(recorder)


async def listen_on(recorder: MicrophoneProcess) -> NoReturn:
    while True:
        await recorder.samples()


@needs_alsa()
async def test_what_is_played_is_what_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = recording("Front_Center.wav")
    heard = np.empty(0, np.float32)
    with microphone(tmp_path, monkeypatch, played):
        async with open_microphone(desk()) as recorder:
            while len(heard) < len(played) + 1000:
                samples = await recorder.samples()
                assert samples.dtype == np.float32
                assert 0 < len(samples) <= RATE_HZ
                heard = np.concatenate((heard, samples))
    np.testing.assert_array_equal(heard[: len(played)] * 32_768, played)
    assert not heard[len(played) :].any()


@needs_alsa()
async def test_a_microphone_that_hangs_is_noticed_and_its_process_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_pipe(tmp_path, monkeypatch) as pipe:
        os.write(pipe, silence(1).tobytes())
        async with open_microphone(desk(silence_s=0.3)) as recorder:
            await recorder.samples()
            assert psutil.Process(recorder.pid).name() == "arecord"
            with pytest.raises(UnavailableError) as caught:
                await listen_on(recorder)
        assert caught.value.code == "microphone_silent"
        assert not psutil.pid_exists(recorder.pid)


@needs_alsa()
async def test_a_microphone_that_is_not_there_is_told_in_the_words_of_alsa() -> None:
    fault = await fault_of(desk(name="plughw:CARD=Nothing"))
    assert fault.code == "microphone_unavailable"
    assert "No such" in fault.message
    assert "arecord -L" in fault.remedy


@needs_alsa()
async def test_a_recorder_that_crashes_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with microphone(tmp_path, monkeypatch, silence(1)):
        async with open_microphone(desk()) as recorder:
            await recorder.samples()
            os.kill(recorder.pid, signal.SIGKILL)
            with pytest.raises(UnavailableError) as caught:
                await listen_on(recorder)
    assert caught.value.code == "microphone_unavailable"


@needs_alsa()
def test_a_recorder_that_hangs_dies_with_a_device_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """
import asyncio
from edge_agent.microphone.process import open_microphone
from primespark.core.capture_settings import SourceSettings

async def main():
    async with open_microphone(SourceSettings(name="desk", microphone="desk")) as recorder:
        await recorder.samples()
        print(recorder.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""
    with open_pipe(tmp_path, monkeypatch) as pipe:
        os.write(pipe, silence(1).tobytes())
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as device:
            assert device.stdout is not None
            pid = int(device.stdout.readline())
            assert psutil.pid_exists(pid)
            device.kill()
        wait_until(lambda: is_gone(pid), 10)


def is_gone(pid: int) -> bool:
    """Whether a process has ended; where nobody waits for orphans it stays as a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_without_arecord_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    fault = await fault_of(desk())
    assert isinstance(fault, MissingDependencyError)
    assert "alsa-utils" in fault.remedy


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program in place of `arecord`."""
    program = folder / "arecord"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


async def test_a_card_at_another_rate_is_not_taken_for_16_khz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # arecord's own words where a card converts nothing; it records at the card's rate nevertheless.
    words = "Warning: rate is not accurate (requested = 16000Hz, got = 48000Hz)"
    stand_in(tmp_path, monkeypatch, f"echo '{words}' >&2; exec cat /dev/zero")
    fault = await asyncio.wait_for(fault_of(desk()), 20)
    assert fault.code == "microphone_unavailable"
    assert "plughw:" in fault.remedy


async def test_a_recorder_that_complains_without_end_is_heard_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaint = "i=0; while [ $i -lt 20000 ]; do echo 'overrun!!! (at least 1.0 ms long)'; i=$((i+1)); done >&2"
    stand_in(tmp_path, monkeypatch, f"{complaint}; head -c 3 /dev/zero; echo 'the end' >&2")
    async with open_microphone(desk()) as recorder:
        assert len(await recorder.samples()) == 1
        # Half a sample is left over.
        with pytest.raises(UnavailableError, match="the end"):
            await recorder.samples()


async def test_a_sample_that_comes_in_two_pieces_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pieces"
    os.mkfifo(pipe)
    stand_in(tmp_path, monkeypatch, f"exec cat {pipe}")
    descriptor = os.open(pipe, os.O_RDWR)
    try:
        async with open_microphone(desk()) as recorder:
            os.write(descriptor, b"\x01\x00\x02")
            assert (await recorder.samples() * 32_768).tolist() == [1]
            os.write(descriptor, b"\x01\x03\x00")
            assert (await recorder.samples() * 32_768).tolist() == [258, 3]
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("script", "code"),
    [
        # A shell between, which a kill alone would leave its child's sound card to.
        ("head -c 2 /dev/zero; sleep 1000; true", "microphone_silent"),
        ("head -c 2 /dev/zero; sleep 1000 & exec true", "microphone_silent"),
        ("head -c 2 /dev/zero; trap '' TERM INT HUP; while :; do sleep 1000; done", "microphone_silent"),
        ("head -c 2 /dev/zero; sleep 1000 >&2 & exec true", "microphone_unavailable"),
    ],
    ids=["shell", "left behind", "deaf", "holds its complaints"],
)
async def test_what_a_recorder_started_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, code: str
) -> None:
    stand_in(tmp_path, monkeypatch, script)
    async with asyncio.timeout(60):
        async with open_microphone(desk(silence_s=0.3)) as recorder:
            assert len(await recorder.samples()) == 1
            group = recorder.pid
            with pytest.raises(UnavailableError) as caught:
                await listen_on(recorder)
    assert caught.value.code == code
    wait_until(lambda: not members(group), 10)


def members(group: int) -> list[int]:
    """Processes of a group that have not ended."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and not is_gone(process.pid):
                found.append(process.pid)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return found
