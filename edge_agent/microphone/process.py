"""The device's side of a microphone's process: start ALSA's `arecord`, take what it records, kill it.

A process, not a thread: a read that blocks inside a driver can be ended by nothing else. ALSA's own recorder, not a
library: it is where ALSA is, needs nothing compiled, and goes on after an overrun.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from edge_agent.child_process import kill_and_wait
from primespark.core.capture_settings import SourceSettings
from primespark.errors import MissingDependencyError, UnavailableError
from primespark.inference.audio import SAMPLE_RATE_HZ

_PROGRAM = "arecord"
_RECORDER = Path(__file__).with_name("recorder.py")
_SAMPLE_BYTES = 2
_BLOCK_BYTES = SAMPLE_RATE_HZ * _SAMPLE_BYTES
_FULL_SCALE = 32_768
# Two programs start and a card is set up, on a small computer under load.
_START_TIMEOUT_S = 10.0
_LAST_WORDS_TIMEOUT_S = 1.0
_MAX_WORDS_BYTES = 4096
# What arecord says when a card without conversion records at another rate than it was asked for.
_WRONG_RATE = b"rate is not accurate"

Samples = NDArray[np.float32]


class MicrophoneProcess:
    """One recorder at work; made by `open_microphone`."""

    def __init__(self, process: asyncio.subprocess.Process, silence_s: float) -> None:
        self._process = process
        self._silence_s = silence_s
        self._timeout_s = max(silence_s, _START_TIMEOUT_S)
        self._rest = b""
        self._words = bytearray()
        self._has_wrong_rate = False
        self._has_said_all = asyncio.Event()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def samples(self) -> Samples:
        """What was recorded since the last call, at least one sample and at most a second: float32 [n] of -1..1.

        Raises:
            UnavailableError: Code `microphone_silent`: nothing for `silence_s`; code `microphone_unavailable`: nothing
                will come.
        """
        whole = 0
        data = self._rest
        while not whole:
            data += await self._read()
            whole = len(data) - len(data) % _SAMPLE_BYTES
        self._rest = data[whole:]
        return np.frombuffer(data[:whole], "<i2").astype(np.float32) / np.float32(_FULL_SCALE)

    async def listen_to_faults(self) -> None:
        """Keep the last of what the recorder says, until it ends; unread, it would block the recorder."""
        stderr = cast("asyncio.StreamReader", self._process.stderr)
        while words := await stderr.read(_MAX_WORDS_BYTES):
            self._words += words
            self._has_wrong_rate |= _WRONG_RATE in self._words
            del self._words[:-_MAX_WORDS_BYTES]
        self._has_said_all.set()

    async def _read(self) -> bytes:
        stdout = cast("asyncio.StreamReader", self._process.stdout)
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await stdout.read(_BLOCK_BYTES)
        except TimeoutError:
            raise UnavailableError(
                f"no sound for {self._timeout_s:g} s", remedy="see that the microphone is on", code="microphone_silent"
            ) from None
        self._timeout_s = self._silence_s
        if self._has_wrong_rate:
            raise UnavailableError(
                f"the card does not record at {SAMPLE_RATE_HZ} Hz",
                remedy="let ALSA convert: write plughw: where hw: is",
                code="microphone_unavailable",
            )
        if not data:
            raise await self._ended()
        return data

    async def _ended(self) -> UnavailableError:
        # They may still be in the pipe; a recorder closes both at its end.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_TIMEOUT_S):
                await self._has_said_all.wait()
        lines = self._words.decode(errors="replace").strip().splitlines()
        cause = lines[-1][:200] if lines else "it ended"
        return UnavailableError(
            f"it gives no sound: {cause}",
            remedy="`arecord -L` lists microphones; see that nobody else records from it",
            code="microphone_unavailable",
        )


@contextlib.asynccontextmanager
async def open_microphone(source: SourceSettings) -> AsyncIterator[MicrophoneProcess]:
    """A recorder of `source` at 16 kHz, killed at the end; the end waits until it is gone.

    Raises:
        MissingDependencyError: `arecord` is not installed.
    """
    program = shutil.which(_PROGRAM)
    if program is None:
        raise MissingDependencyError("a microphone needs arecord", remedy="apt-get install alsa-utils")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(_RECORDER), str(os.getpid()), program,
        "-D", str(source.microphone), "-t", "raw", "-f", "S16_LE", "-r", str(SAMPLE_RATE_HZ), "-c", "1",
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"}, start_new_session=True,
    )  # fmt: skip
    try:
        microphone = MicrophoneProcess(process, source.silence_s)
        words = asyncio.create_task(microphone.listen_to_faults(), name=f"words of {source.name}")
        try:
            yield microphone
        finally:
            words.cancel()
            await asyncio.wait([words])
    finally:
        await kill_and_wait(process)
