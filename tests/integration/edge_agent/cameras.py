"""An HTTP camera (MJPEG) whose faults a test chooses: it hangs, drops, refuses, and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator

import numpy as np
from PIL import Image

from edge_agent.capture import Capture, Witness
from edge_agent.capture.broadcast import Broadcast
from edge_agent.capture.earwitness import Earwitness
from edge_agent.capture.picture_store import PictureKind, PictureStore
from edge_agent.database import Database
from edge_agent.inference_service import InferenceService
from edge_agent.queue import OfflineQueue
from primespark.core.capture_settings import CaptureSettings
from primespark.core.settings import OfflineSettings

RED = (250, 0, 0)


def jpeg(colour: tuple[int, int, int] = RED, width: int = 64, height: int = 48) -> bytes:
    """A picture of one colour."""
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), colour, np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


class MjpegCamera:
    """Serves `picture` as a multipart stream, a part every `interval_s`."""

    def __init__(self) -> None:
        self.picture = jpeg()
        self.interval_s = 0.01
        self.is_hanging = False
        self.is_refusing = False
        self.connections = 0
        self.parts = 0
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()

    def drop(self) -> None:
        """End all connections."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a request with a stream without end."""
        self.connections += 1
        self._writers.add(writer)
        try:
            await reader.readuntil(b"\r\n\r\n")
            if self.is_refusing:
                writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                return
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n")
            while True:
                if not self.is_hanging:
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(self.picture)}\r\n\r\n"
                    writer.write(head.encode() + self.picture + b"\r\n")
                    await writer.drain()
                    self.parts += 1
                await asyncio.sleep(self.interval_s)  # the camera's frame rate
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()


@contextlib.asynccontextmanager
async def mjpeg_camera() -> AsyncIterator[MjpegCamera]:
    """A camera at work on a free port of 127.0.0.1."""
    camera = MjpegCamera()
    server = await asyncio.start_server(camera.serve_one, "127.0.0.1", 0)
    camera.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/video.mjpg"
    try:
        yield camera
    finally:
        server.close()
        camera.drop()


def build_capture(
    settings: CaptureSettings,
    service: InferenceService,
    database: Database,
    reconnect_base_s: float = 0.05,
    limits: OfflineSettings | None = None,
) -> tuple[Capture, Witness, dict[PictureKind, PictureStore], Broadcast]:
    """The parts of a device that look, on the folder of its database."""
    folder = database.path.parent
    pictures = {
        PictureKind.EVENT: PictureStore(folder / "snapshots", PictureKind.EVENT, settings.snapshots, 0),
        PictureKind.EXAMPLE: PictureStore(folder / "examples", PictureKind.EXAMPLE, settings.hard_examples, 0),
    }
    broadcast = Broadcast()
    queue = OfflineQueue(database, limits or OfflineSettings())
    witness = Witness(settings, service.settings.minimum_score, queue, pictures, broadcast)
    earwitness = Earwitness(settings, queue, pictures[PictureKind.EVENT], broadcast)
    return Capture(settings, service, witness, earwitness, reconnect_base_s), witness, pictures, broadcast
