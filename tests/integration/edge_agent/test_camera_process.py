"""Cameras and streams read by real processes: what they see, and what becomes of them when they hang, drop or crash."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from pydantic import SecretStr

from edge_agent.camera.process import CameraProcess, open_camera
from primespark.core.capture_settings import SourceSettings
from primespark.errors import InvalidInputError, MissingDependencyError, PrimeSparkError, UnavailableError
from tests.integration.edge_agent.cameras import jpeg, mjpeg_camera
from tests.integration.edge_agent.device import until
from tests.integration.edge_agent.rtsp import rtsp_camera

pytest.importorskip("cv2", reason="needs opencv-python-headless: pip install 'primespark[edge-cv]'")

MAX_PIXELS = 100_000


def stream(url: str, silence_s: float = 10.0) -> SourceSettings:
    return SourceSettings(name="door", url=SecretStr(url), silence_s=silence_s)


async def fault_of(source: SourceSettings, max_pixels: int = MAX_PIXELS) -> PrimeSparkError:
    with pytest.raises(PrimeSparkError) as caught:
        async with open_camera(source, max_pixels) as camera:
            await camera.frame()
    return caught.value


async def test_a_stream_gives_frames_in_rgb() -> None:
    async with mjpeg_camera() as server, open_camera(stream(server.url), MAX_PIXELS) as camera:
        pixels = await camera.frame()
        assert pixels.shape == (48, 64, 3)
        red, green, blue = pixels[20, 30]
        assert red > 200
        assert max(green, blue) < 60


async def test_an_rtsp_stream_gives_frames_and_a_hang_of_it_is_noticed() -> None:
    async with (
        rtsp_camera(jpeg(width=320, height=240)) as server,
        open_camera(stream(server.url, silence_s=2.0), MAX_PIXELS) as camera,
    ):
        pixels = await camera.frame()
        assert pixels.shape == (240, 320, 3)
        assert pixels[..., 0].min() > 200
        assert pixels[..., 1:].max() < 60
        server.flows.clear()
        assert (await read_until_fault(camera)).code == "camera_silent"


async def test_the_frame_given_is_one_that_comes_after_the_question() -> None:
    async with mjpeg_camera() as server, open_camera(stream(server.url), MAX_PIXELS) as camera:
        await camera.frame()
        parts = server.parts
        # Nobody asks for longer than any buffer between the two holds frames of the old colour.
        await until(lambda: server.parts > parts + 50)
        server.picture = jpeg((0, 0, 250))
        parts = server.parts
        await until(lambda: server.parts > parts + 20)
        assert (await camera.frame())[20, 30, 2] > 200


async def read_until_fault(camera: CameraProcess) -> PrimeSparkError:
    with pytest.raises(UnavailableError) as caught:
        await read_on(camera)
    return caught.value


async def read_on(camera: CameraProcess) -> None:
    while True:
        await camera.frame()


async def test_a_stream_that_hangs_is_noticed_and_its_process_ends() -> None:
    async with mjpeg_camera() as server, open_camera(stream(server.url, silence_s=0.5), MAX_PIXELS) as camera:
        await camera.frame()
        server.is_hanging = True
        assert (await read_until_fault(camera)).code == "camera_silent"
    assert not psutil.pid_exists(camera.pid)


async def test_a_process_that_does_not_answer_at_all_is_killed() -> None:
    async with mjpeg_camera() as server, open_camera(stream(server.url, silence_s=0.5), MAX_PIXELS) as camera:
        await camera.frame()
        # Stopped, it is as deaf as one that waits in a driver.
        os.kill(camera.pid, signal.SIGSTOP)
        assert (await read_until_fault(camera)).code == "camera_silent"
    assert not psutil.pid_exists(camera.pid)


async def test_a_stream_that_ends_is_told() -> None:
    async with mjpeg_camera() as server, open_camera(stream(server.url), MAX_PIXELS) as camera:
        await camera.frame()
        server.drop()
        assert (await read_until_fault(camera)).code == "camera_unavailable"


async def test_a_reader_that_crashes_is_told() -> None:
    async with mjpeg_camera() as server, open_camera(stream(server.url), MAX_PIXELS) as camera:
        await camera.frame()
        os.kill(camera.pid, signal.SIGSEGV)
        assert "crashed" in str(await read_until_fault(camera))


async def test_what_cannot_be_opened_is_told_without_its_password() -> None:
    fault = await fault_of(stream("rtsp://user:secret@127.0.0.1:9/live"))
    assert fault.code == "camera_unavailable"
    assert "secret" not in str(fault)
    fault = await fault_of(SourceSettings(name="usb", device="/dev/video250"))
    assert fault.code == "camera_unavailable"


async def test_frames_over_the_limit_are_refused() -> None:
    async with mjpeg_camera() as server:
        fault = await fault_of(stream(server.url), max_pixels=64 * 48 - 1)
    assert isinstance(fault, InvalidInputError)
    assert fault.code == "image_too_large"


async def test_a_csi_camera_needs_picamera2() -> None:
    assert isinstance(await fault_of(SourceSettings(name="csi", csi=0)), MissingDependencyError)


PICAMERA2 = """
import time
import numpy as np

class Picamera2:
    def __init__(self, camera_num=0):
        if camera_num != 1:
            raise IndexError("list index out of range")
    def create_video_configuration(self, main):
        assert main == {"format": "RGB888"}
        return main
    def configure(self, configuration):
        self.configuration = configuration
    def start(self):
        self.is_started = True
    def capture_array(self, name):
        assert self.is_started and name == "main"
        time.sleep(0.01)  # how long a sensor takes for a frame
        return np.full((48, 64, 3), (0, 0, 250), np.uint8)
"""


async def test_a_csi_camera_is_read_through_the_public_calls_of_picamera2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picamera2.py").write_text(PICAMERA2)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with open_camera(SourceSettings(name="csi", csi=1), MAX_PIXELS) as camera:
        for _ in range(3):
            assert list((await camera.frame())[20, 30]) == [250, 0, 0]
    assert (await fault_of(SourceSettings(name="csi", csi=0))).code == "camera_unavailable"


async def test_a_camera_dies_with_the_device(tmp_path: Path) -> None:
    async with mjpeg_camera() as server:
        code = f"""
import asyncio, sys
from pydantic import SecretStr
from edge_agent.camera.process import CameraProcess, open_camera
from primespark.core.capture_settings import SourceSettings
async def main():
    async with open_camera(SourceSettings(name="door", url=SecretStr({server.url!r})), {MAX_PIXELS}) as camera:
        await camera.frame()
        print(camera.pid, flush=True)
        await asyncio.Event().wait()
asyncio.run(main())
"""
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        assert process.stdout is not None
        pid = int(await process.stdout.readline())
        assert psutil.pid_exists(pid)
        process.kill()
        await process.wait()
        await until(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
