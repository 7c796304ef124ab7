"""A real stream, the real detector, the real queue: events, pictures, what leaves the device, and a camera's faults."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client import REGISTRY

from edge_agent.capture import Capture, Witness
from edge_agent.capture.broadcast import Broadcast
from edge_agent.capture.picture_store import PictureKind, PictureStore
from edge_agent.capture.watching import SourceState
from edge_agent.database import Database
from edge_agent.inference_service import InferenceService
from edge_agent.slots.in_service import Slots
from primespark.core.capture_settings import CaptureSettings
from primespark.core.settings import InferenceSettings
from primespark.inference.models import DETECTOR, ServedModel, load_bundled
from primespark.inference.samples import sample_images
from primespark.store.facts import storable_value
from primespark.sync.records import Fact
from tests.integration.edge_agent.cameras import MjpegCamera, build_capture, jpeg, mjpeg_camera
from tests.integration.edge_agent.device import until

pytest.importorskip("cv2", reason="needs opencv-python-headless: pip install 'primespark[edge-cv]'")

RULE = {"name": "cup-seen", "labels": ["cup"], "cool_down_s": 3600}


@pytest.fixture(scope="module")
def detector() -> ServedModel:
    return load_bundled(DETECTOR, 1, 0.4)


def coffee() -> bytes:
    """A photograph of a cup, as JPEG."""
    data = next(data for name, data in sample_images() if name == "coffee.png")
    file = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


@dataclass(frozen=True)
class Watching:
    """A capture at work."""

    server: MjpegCamera
    capture: Capture
    witness: Witness
    pictures: dict[PictureKind, PictureStore]
    broadcast: Broadcast
    database: Database

    @property
    def state(self) -> SourceState:
        return self.capture.sources["door"].state

    def has_more_than(self, results: int) -> bool:
        return len(self.facts("inference_results")) > results

    def facts(self, stream: str) -> list[dict[str, Any]]:
        """All facts of a stream that wait, as they will travel."""
        select = "SELECT seq, tail FROM operation WHERE stream = ? ORDER BY seq"
        rows = self.database.submit(lambda connection: connection.execute(select, (stream,)).fetchall()).result()
        return [json.loads(b"{" + tail) | {"stream": stream, "seq": seq} for seq, tail in rows]


@contextlib.asynccontextmanager
async def watching(
    tmp_path: Path, detector: ServedModel, *, source: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[Watching]:
    database = Database(tmp_path / "queue.db")
    service = InferenceService(Slots(), InferenceSettings(max_image_pixels=1_000_000))
    async with mjpeg_camera() as server:
        server.picture, server.interval_s = coffee(), 0.02
        door = {"name": "door", "url": server.url, "silence_s": 1.0, "frames_per_second": 20} | (source or {})
        looking = CaptureSettings.model_validate({"sources": [door]} | settings)
        capture, witness, pictures, broadcast = build_capture(looking, service, database)
        task = asyncio.create_task(capture.run(detector))
        try:
            yield Watching(server, capture, witness, pictures, broadcast, database)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            service.close()
            database.close()


def readers() -> list[psutil.Process]:
    """Processes of ours that read cameras."""
    found = []
    for child in psutil.Process(os.getpid()).children():
        with contextlib.suppress(psutil.Error):
            if "edge_agent.camera.reader" in child.cmdline():
                found.append(child)
    return found


async def test_a_rule_makes_one_event_with_a_snapshot_and_no_pixel_leaves(
    tmp_path: Path, detector: ServedModel
) -> None:
    async with watching(tmp_path, detector, source={"rules": [RULE]}) as at_work:
        await until(lambda: len(at_work.facts("inference_results")) >= 5)
        (event,) = at_work.facts("events")
        results = at_work.facts("inference_results")
    assert {result["value"]["source"] for result in results} == {"door"}
    (cup,) = [found for found in results[0]["value"]["predictions"] if found["label"] == "cup"]
    value = event["value"]
    assert (value["event"], value["source"], value["label"], value["score"]) == (
        "cup-seen",
        "door",
        "cup",
        cup["score"],
    )
    assert value["box"] == pytest.approx(cup["box"], abs=0.01)
    assert event["data_class"] == "inference_results"
    assert not [key for key in value if "image_jpeg" in key]
    assert max(len(json.dumps(fact)) for fact in [event, *results]) < 2_000
    data = at_work.pictures[PictureKind.EVENT].read(value["snapshot"])
    assert Image.open(io.BytesIO(data)).size == (value["image_width"], value["image_height"])
    (picture,) = at_work.pictures[PictureKind.EVENT].list(None, 10).pictures
    assert picture.note["track"] == value["track"]


@pytest.mark.parametrize("policy", ["crops", "full"])
async def test_what_the_policy_lets_leave_travels_in_the_fact(
    tmp_path: Path, detector: ServedModel, policy: str
) -> None:
    async with watching(tmp_path, detector, source={"rules": [RULE]}, images=policy) as at_work:
        await until(lambda: at_work.facts("events"))
        (event,) = at_work.facts("events")
        (snapshot,) = at_work.pictures[PictureKind.EVENT].list(None, 10).pictures
        assert "image_jpeg_base64" not in snapshot.note
    # What the gate does with a fact of the device.
    storable_value(Fact.model_validate_json(json.dumps(event)))
    value = event["value"]
    assert value["image_kind"] == policy
    width, height = Image.open(io.BytesIO(base64.b64decode(value["image_jpeg_base64"]))).size
    box = value["box"]
    if policy == "crops":
        assert width / height == pytest.approx((box["x_max"] - box["x_min"]) / (box["y_max"] - box["y_min"]), rel=0.1)
    else:
        assert width / height == pytest.approx(value["image_width"] / value["image_height"], rel=0.01)


async def test_outside_the_region_there_is_nothing(tmp_path: Path, detector: ServedModel) -> None:
    # The cup's middle is near (0.6, 0.4) of the photograph.
    region = {"x_min": 0.25, "y_min": 0.0, "x_max": 1.0, "y_max": 0.8}
    async with watching(tmp_path, detector, source={"rules": [RULE], "region": region}) as at_work:
        await until(lambda: at_work.facts("events"))
        (event,) = at_work.facts("events")
        width, height = Image.open(io.BytesIO(coffee())).size
        assert at_work.witness.latest["door"].pixels.shape == (round(height * 0.8), width - width // 4, 3)
    assert (event["value"]["image_width"], event["value"]["image_height"]) == (width - width // 4, round(height * 0.8))
    assert event["value"]["box"]["x_max"] <= event["value"]["image_width"]


async def test_a_camera_that_hangs_drops_and_refuses_is_found_again_and_leaves_nothing(
    tmp_path: Path, detector: ServedModel
) -> None:
    async with watching(tmp_path, detector) as at_work:
        door = at_work.capture.sources["door"]
        await until(lambda: at_work.state is SourceState.LIVE)
        for fault, code in (("is_hanging", "camera_silent"), ("is_refusing", "camera_unavailable")):
            before = reconnects(code)
            setattr(at_work.server, fault, True)
            if fault == "is_refusing":
                at_work.server.drop()
            await until(lambda: at_work.state is SourceState.RECONNECTING, 20)
            assert door.fault
            assert up() == 0
            await until(partial(lambda code, before: reconnects(code) >= before + 2, code, before), 20)
            assert len(readers()) <= 1
            setattr(at_work.server, fault, False)
            await until(lambda: at_work.state is SourceState.LIVE, 30)
            assert (door.fault, up()) == ("", 1)
            number = len(at_work.facts("inference_results"))
            await until(partial(at_work.has_more_than, number), 10)
        assert door.reconnects >= 4
    assert readers() == []


def up() -> float | None:
    return REGISTRY.get_sample_value("primespark_capture_source_up", {"source": "door"})


def reconnects(code: str) -> float:
    labels = {"source": "door", "code": code}
    return REGISTRY.get_sample_value("primespark_capture_reconnects_total", labels) or 0.0


async def test_a_model_slower_than_the_camera_sees_the_newest_frame(tmp_path: Path, detector: ServedModel) -> None:
    async with watching(tmp_path, detector, source={"frames_per_second": 1000}) as at_work:
        # More than the model manages: many would wait by now if any did.
        at_work.server.interval_s, superseded = 0.008, frames("superseded")
        await until(lambda: frames("superseded") > superseded + 100, 30)
        at_work.server.picture = jpeg((0, 0, 250), 600, 400)
        before = at_work.server.parts
        await until(lambda: at_work.server.parts > before)
        seen = len(at_work.facts("inference_results"))
        await until(lambda: np.median(at_work.witness.latest["door"].pixels[..., 2]) > 200)
        # One under way, one that waits, one being read, and what two processes on a busy machine are late by.
        assert len(at_work.facts("inference_results")) - seen <= 10


def frames(outcome: str) -> float:
    return REGISTRY.get_sample_value("primespark_capture_frames_total", {"outcome": outcome}) or 0.0


async def test_hard_examples_are_kept_within_the_day(tmp_path: Path, detector: ServedModel) -> None:
    hard = {"daily_bytes": 10_000_000, "minimum_interval_s": 0, "novelty_distance": 30, "chance": 0}
    async with watching(tmp_path, detector, hard_examples=hard) as at_work:
        await until(lambda: len(at_work.facts("inference_results")) >= 3)
        at_work.server.picture = jpeg((0, 0, 250), 600, 400)
        await until(lambda: np.median(at_work.witness.latest["door"].pixels[..., 2]) > 200)
        number = len(at_work.facts("inference_results"))
        await until(lambda: len(at_work.facts("inference_results")) >= number + 3)
        kept = at_work.pictures[PictureKind.EXAMPLE].list(None, 500).pictures
        assert {picture.note["reason"] for picture in kept} >= {"novelty"}
        assert all(picture.note["source"] == "door" for picture in kept)
        novel = [picture for picture in kept if picture.note["reason"] == "novelty"]
        assert len(novel) <= 2
        assert at_work.pictures[PictureKind.EVENT].list(None, 1).pictures == []


async def test_a_full_queue_costs_facts_not_pictures_and_not_listeners(tmp_path: Path, detector: ServedModel) -> None:
    async with watching(tmp_path, detector, source={"rules": [RULE]}) as at_work:
        with at_work.broadcast.listen() as listener:
            at_work.witness._queue._free_bytes = lambda: 0
            messages = listener.messages()
            while not (message := await asyncio.wait_for(anext(messages), 20)).startswith(b"event: event"):
                pass
            value = json.loads(message.split(b"data: ")[1])
            assert value["event"] == "cup-seen"
            assert at_work.pictures[PictureKind.EVENT].read(value["snapshot"])
            assert at_work.facts("events") == at_work.facts("inference_results") == []
