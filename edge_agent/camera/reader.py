"""The process that reads one camera or stream: `python -m edge_agent.camera.reader`, started by `process.py`.

It may hang or crash inside a driver or decoder: whoever started it kills it and starts another. It reads every frame,
so that nothing old waits in a buffer, and hands over one when asked: the first that comes after the question.

    stdin   a JSON line `{kind, address, timeout_s, memory, memory_bytes, max_pixels}`, then an empty line per question
    stdout  `{"ready": true}` once loaded, per question `{"height", "width"}`, `{"fault", "message"}` before it ends
    memory  the frame last handed over, uint8 [height, width, 3] RGB, in the shared memory of that descriptor
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn, Protocol

# No camera is faster; a stream that is a recording would else be read as fast as the processor can.
_LEAST_INTERVAL_S = 1 / 120
_CHANNELS = 3


class Camera(Protocol):
    """Something that gives frames, uint8 [height, width, 3] BGR."""

    def grab(self) -> bool:
        """Wait for the next frame; false when none will come."""

    def retrieve(self) -> Any:
        """The frame grabbed last, or None where it cannot be decoded."""


class UnusableError(Exception):
    """This camera cannot be read; `args` are a code and a message for the device's log."""


class _Asked:
    """Whether a frame is wanted; ends the process when nobody is left who could want one."""

    def __init__(self) -> None:
        self.event = threading.Event()
        threading.Thread(target=self._listen, name="questions", daemon=True).start()

    def _listen(self) -> None:
        while sys.stdin.buffer.readline():
            self.event.set()
        # The main thread may hang in a driver, so nothing gentler would end it.
        os._exit(0)


class OpenCvCamera:
    """A V4L2 camera or a stream.

    Args:
        cv2: The module.
        kind: `device` or `url`.
        address: Its number, path or URL.
        timeout_s: After which FFmpeg gives up by itself.
    """

    def __init__(self, cv2: Any, kind: str, address: int | str, timeout_s: float) -> None:
        if kind == "device":
            self._capture = cv2.VideoCapture(address, cv2.CAP_V4L2)
        else:
            timeout_ms = int(timeout_s * 1000)
            bounds = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, timeout_ms, cv2.CAP_PROP_READ_TIMEOUT_MSEC, timeout_ms]
            self._capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, bounds)
        if not self._capture.isOpened():
            raise UnusableError("camera_unavailable", "it cannot be opened")

    def grab(self) -> bool:
        """Wait for the next frame."""
        return bool(self._capture.grab())

    def retrieve(self) -> Any:
        """The frame grabbed last."""
        is_decoded, pixels = self._capture.retrieve()
        return pixels if is_decoded else None


class CsiCamera:
    """A camera of picamera2, which calls the order B, G, R in memory `RGB888`.

    Args:
        picamera2: The module.
        number: Which camera.
        asked: Set when a frame is wanted; between, picamera2 keeps nothing waiting.
    """

    def __init__(self, picamera2: Any, number: int, asked: threading.Event) -> None:
        self._asked = asked
        try:
            self._camera = picamera2.Picamera2(number)
            self._camera.configure(self._camera.create_video_configuration(main={"format": "RGB888"}))
            self._camera.start()
        # What its libraries raise is not told by its documentation.
        except Exception as error:
            raise UnusableError("camera_unavailable", f"it cannot be opened: {error}"[:200]) from error

    def grab(self) -> bool:
        """Wait until a frame is wanted."""
        return self._asked.wait()

    def retrieve(self) -> Any:
        """The next frame."""
        return self._camera.capture_array("main")


def main() -> NoReturn:
    """Read until asked to stop."""
    # What libraries print goes where their errors go, so that answers stand alone.
    say = partial(_say, os.dup(1))
    os.dup2(2, 1)
    task = json.loads(sys.stdin.buffer.readline())
    asked = _Asked()
    try:
        open_camera = _load(task, asked.event)
        say({"ready": True})
        memory = mmap.mmap(task["memory"], task["memory_bytes"])
        for pixels in _wanted_frames(open_camera(), asked.event, task["max_pixels"]):
            _put(pixels, memory)
            # Before the answer, which the next question follows.
            asked.event.clear()
            say({"height": pixels.shape[0], "width": pixels.shape[1]})
    except UnusableError as fault:
        code, message = fault.args
        say({"fault": code, "message": message})
    # Native threads of decoders need not end; nothing here is left to be saved.
    os._exit(0)


def _load(task: dict[str, Any], asked: threading.Event) -> Callable[[], Camera]:
    try:
        if task["kind"] == "csi":
            import picamera2

            return lambda: CsiCamera(picamera2, task["address"], asked)
        import cv2
    except ImportError as error:
        raise UnusableError("missing_dependency", f"{error.name} is not installed") from None
    return lambda: OpenCvCamera(cv2, task["kind"], task["address"], task["timeout_s"])


def _wanted_frames(camera: Camera, asked: threading.Event, max_pixels: int) -> Iterator[Any]:
    """Frames that were asked for; all others are read and dropped."""
    while True:
        started = time.monotonic()
        if not camera.grab():
            raise UnusableError("camera_unavailable", "it gives no more frames")
        if asked.is_set() and (pixels := camera.retrieve()) is not None:
            height, width = pixels.shape[:2]
            if height * width > max_pixels:
                raise UnusableError("image_too_large", f"frames of {width} x {height}, limit {max_pixels} pixels")
            yield pixels
        time.sleep(max(0.0, started + _LEAST_INTERVAL_S - time.monotonic()))


def _put(pixels: Any, memory: mmap.mmap) -> None:
    """Copy a frame to the beginning of the shared memory, its colours in the order of a person's reading."""
    import numpy as np

    height, width = pixels.shape[:2]
    target = np.frombuffer(memory, np.uint8, height * width * _CHANNELS).reshape(height, width, _CHANNELS)
    # A camera without colours has one number per pixel, which fills all three.
    np.copyto(target, pixels[:, :, 2::-1] if pixels.ndim == _CHANNELS else pixels[:, :, None])


def _say(answers: int, message: dict[str, Any]) -> None:
    os.write(answers, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
