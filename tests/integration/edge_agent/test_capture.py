"""Looking over real files with the real detector: what a fault of one frame does to the others, and to the log."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

from edge_agent.capture.watching import SourceState
from edge_agent.database import Database
from edge_agent.inference_service import InferenceService
from edge_agent.queue import remove
from edge_agent.slots.in_service import Slots
from primespark.core.capture_settings import CaptureSettings
from primespark.core.settings import InferenceSettings, OfflineSettings
from primespark.inference.models import DETECTOR, load_bundled
from tests.integration.edge_agent.cameras import build_capture
from tests.integration.edge_agent.device import until


async def test_a_bad_file_in_a_looped_folder_is_told_once_until_its_fault_changes(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "good.png").write_bytes(png(8))
    bad = folder / "bad.png"
    bad.write_bytes(b"no image")
    database = Database(tmp_path / "queue.db")
    service = InferenceService(Slots(), InferenceSettings(max_image_pixels=64))
    settings = CaptureSettings(sources=(str(folder),), frames_per_second=50)
    capture = build_capture(settings, service, database)[0]
    with capture_logs() as logs:
        looking = asyncio.create_task(capture.run(load_bundled(DETECTOR, 1, 0.4)))
        await until(lambda: service.figures.frames >= 5)
        bad.write_bytes(png(9))
        await until(lambda: len(failed(logs)) > 1)
        frames = service.figures.frames
        await until(lambda: service.figures.frames >= frames + 5)
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    service.close()
    database.close()
    assert failed(logs) == ["undecodable_image", "image_too_large"]


async def test_a_video_that_is_not_looped_ends(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="needs opencv-python-headless: pip install 'primespark[edge-cv]'")
    path = tmp_path / "clip.avi"
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for _ in range(5):
        video.write(np.zeros((48, 64, 3), np.uint8))
    video.release()
    database = Database(tmp_path / "queue.db")
    service = InferenceService(Slots(), InferenceSettings())
    source = {"name": "clip", "path": str(path), "frames_per_second": 100}
    settings = CaptureSettings.model_validate({"sources": [source], "loop": False})
    capture, witness, _, broadcast = build_capture(settings, service, database)
    with broadcast.listen() as listener:
        looking = asyncio.create_task(capture.run(load_bundled(DETECTOR, 1, 0.4)))
        await until(lambda: capture.sources["clip"].state is SourceState.ENDED)
        seen = []
        async for message in listener.messages():
            seen += re.findall(rb'"source": "(clip#\d)"', message)
            if seen[-1:] == [b"clip#4"]:
                break
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    service.close()
    database.close()
    assert seen == sorted(set(seen))
    assert witness.latest["clip"].pixels.shape == (48, 64, 3)


async def test_a_source_tells_while_the_full_queue_does_not_take_what_it_sees(tmp_path: Path) -> None:
    path = tmp_path / "frame.png"
    path.write_bytes(png(8))
    database = Database(tmp_path / "queue.db")
    service = InferenceService(Slots(), InferenceSettings())
    settings = CaptureSettings.model_validate(
        {"sources": [{"name": "yard", "path": str(path), "frames_per_second": 50}]}
    )
    capture = build_capture(settings, service, database, limits=OfflineSettings(capacity_operations=1))[0]
    looking = asyncio.create_task(capture.run(load_bundled(DETECTOR, 1, 0.4)))
    await until(lambda: "the queue takes 1" in capture.sources["yard"].frame_fault)
    (waiting,) = await database.run(lambda connection: connection.execute("SELECT id FROM operation").fetchall())
    await database.run(lambda connection: remove(connection, waiting))
    await until(lambda: not capture.sources["yard"].frame_fault)
    looking.cancel()
    await asyncio.gather(looking, return_exceptions=True)
    service.close()
    database.close()


def failed(logs: list[MutableMapping[str, Any]]) -> list[str]:
    return [entry["code"] for entry in logs if entry["event"] == "frame_failed"]


def png(size: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((size, size, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()
