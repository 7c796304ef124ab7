"""The device's side of a camera's process: start it, ask it for frames, kill it.

A process, not a thread: a read that blocks inside a driver or in FFmpeg can be ended by nothing else, and a decoder
that crashes on a bad stream takes only itself along.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import mmap
import os
import sys
from collections.abc import AsyncIterator
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from edge_agent.child_process import kill_and_wait
from primespark.core.capture_settings import SourceSettings
from primespark.core.extras import how_to_add
from primespark.errors import InvalidInputError, MissingDependencyError, PrimeSparkError, UnavailableError

_CHANNELS = 3
# Python and OpenCV load in half a second; a small computer under load takes many times that.
_LOAD_TIMEOUT_S = 60.0
# FFmpeg gives up later than its device does, which knows why.
_PATIENCE = 2.0
# OpenCV 4 asks for UDP, where a lost packet is a torn picture, OpenCV 5 for TCP.
_DEFAULTS = {"OPENCV_FFMPEG_CAPTURE_OPTIONS": "rtsp_transport;tcp"}
# FFmpeg prints addresses, passwords and all; the process tells its faults itself.
_ENVIRONMENT = {"OPENCV_LOG_LEVEL": "OFF", "OPENCV_FFMPEG_LOGLEVEL": "-8"}


class CameraProcess:
    """One reader at work; made by `open_camera`."""

    def __init__(self, process: asyncio.subprocess.Process, memory: mmap.mmap, silence_s: float) -> None:
        self._process = process
        self._memory = memory
        self._max_pixels = len(memory) // _CHANNELS
        self._silence_s = silence_s

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def frame(self) -> NDArray[np.uint8]:
        """The next frame that comes, uint8 [height, width, 3] RGB.

        Raises:
            UnavailableError: Code `camera_silent`: none within `silence_s`; code `camera_unavailable`: none will come.
            InvalidInputError: Code `image_too_large`.
        """
        self._write(b"\n")
        found = await self._read(self._silence_s)
        height, width = found.get("height"), found.get("width")
        if not isinstance(height, int) or not isinstance(width, int) or not 0 < height * width <= self._max_pixels:
            raise _as_error("camera_unavailable", "its reader answers nonsense")
        return await asyncio.to_thread(self._copy, height, width)

    async def load(self, task: dict[str, Any]) -> None:
        """Tell it what to read and wait until its libraries are loaded."""
        self._write(json.dumps(task).encode() + b"\n")
        await self._read(_LOAD_TIMEOUT_S)

    def _write(self, line: bytes) -> None:
        cast("asyncio.StreamWriter", self._process.stdin).write(line)

    async def _read(self, timeout_s: float) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout_s):
                line = await cast("asyncio.StreamReader", self._process.stdout).readline()
        except TimeoutError:
            raise UnavailableError(
                f"no frame for {timeout_s:g} s", remedy="see that the camera is on and reachable", code="camera_silent"
            ) from None
        message = _parse(line)
        if "fault" in message:
            raise _as_error(message["fault"], message.get("message", ""))
        return message

    def _copy(self, height: int, width: int) -> NDArray[np.uint8]:
        size = height * width * _CHANNELS
        return np.frombuffer(self._memory, np.uint8, size).reshape(height, width, _CHANNELS).copy()


def _parse(line: bytes) -> dict[str, Any]:
    """What a reader said; one that broke off in the middle, or was led astray by a stream, has crashed."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    return message if isinstance(message, dict) else {"fault": "camera_unavailable", "message": "its reader crashed"}


@contextlib.asynccontextmanager
async def open_camera(source: SourceSettings, max_pixels: int) -> AsyncIterator[CameraProcess]:
    """A reader of `source`, killed at the end; the end waits until it is gone, so a source never has two.

    Raises:
        MissingDependencyError: OpenCV or picamera2 is not installed.
    """
    descriptor = os.memfd_create("frame")
    try:
        os.ftruncate(descriptor, max_pixels * _CHANNELS)
        memory = mmap.mmap(descriptor, max_pixels * _CHANNELS)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "edge_agent.camera.reader",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
            pass_fds=(descriptor,), env={**_DEFAULTS, **os.environ, **_ENVIRONMENT}, start_new_session=True,
        )  # fmt: skip
        try:
            camera = CameraProcess(process, memory, source.silence_s)
            await camera.load(_task(source, descriptor, max_pixels))
            yield camera
        finally:
            await kill_and_wait(process)
    finally:
        os.close(descriptor)


def _task(source: SourceSettings, descriptor: int, max_pixels: int) -> dict[str, Any]:
    kind, address = next(
        (kind, address)
        for kind, address in (
            ("url", source.url.get_secret_value() if source.url else None),
            ("device", source.device),
            ("csi", source.csi),
        )
        if address is not None
    )
    return {
        "kind": kind, "address": address, "timeout_s": _PATIENCE * source.silence_s, "memory": descriptor,
        "memory_bytes": max_pixels * _CHANNELS, "max_pixels": max_pixels,
    }  # fmt: skip


def _as_error(code: str, message: str) -> PrimeSparkError:
    if code == "missing_dependency":
        return MissingDependencyError(
            message, remedy=f"{how_to_add('edge-cv')}; for a CSI camera the system's picamera2"
        )
    if code == "image_too_large":
        return InvalidInputError(
            message, remedy="let the camera send less, or raise edge.inference.max_image_pixels", code="image_too_large"
        )
    return UnavailableError(message, remedy="see that the camera is on and reachable", code="camera_unavailable")
