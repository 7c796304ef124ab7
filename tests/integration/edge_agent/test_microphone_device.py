"""A running device with a microphone and no camera: what it tells over HTTP, and that it loads no detector."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import soundfile

from tests.helpers import wait_until
from tests.integration.edge_agent.microphones import define, leave, needs_alsa, recording, silence
from tests.integration.edge_agent.test_process import Process, running

pytestmark = needs_alsa()

RULE = {"name": "somebody-speaks", "labels": ["speech"]}


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("device")
    scene = np.concatenate((silence(1), recording("Front_Center.wav"), silence(1)))
    settings = {
        "ALSA_CONFIG_PATH": str(define(home, desk=leave(home, scene))),
        "PRIMESPARK_EDGE__CAPTURE__SOURCES": json.dumps([{"name": "desk", "microphone": "desk", "rules": [RULE]}]),
    }
    with running(home, **settings) as running_device:
        wait_until(lambda: running_device.sees(0) and bool(clips(running_device)), 60)
        yield running_device


def ask(device: Process, path: str) -> httpx2.Response:
    key = (device.folder / "local.key").read_text()
    return httpx2.get(device.url + path, headers={"Authorization": f"Bearer {key}"}, timeout=10)


def clips(device: Process) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = ask(device, "/api/v1/snapshots").json()["items"]
    return items


def test_a_clip_is_listed_and_fetched(device: Process) -> None:
    (clip,) = clips(device)
    assert (clip["event"], clip["source"], clip["media_type"]) == ("somebody-speaks", "desk", "audio/flac")
    answer = ask(device, f"/api/v1/snapshots/{clip['id']}")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "audio/flac")
    assert answer.headers["cache-control"] == "no-store"
    assert len(answer.content) == clip["bytes"]
    samples, rate = soundfile.read(io.BytesIO(answer.content))
    assert rate == 16_000
    assert np.abs(samples).max() > 0.1


def test_the_microphone_says_how_it_stands(device: Process) -> None:
    (desk,) = device.get("/api/v1/capture")["items"]
    assert (desk["kind"], desk["state"], desk["fault"], desk["rules"]) == (
        "microphone",
        "live",
        None,
        ["somebody-speaks"],
    )
    assert desk["last_frame_at"] is not None
    assert device.get("/health")["status"] == "healthy"
    assert ask(device, "/api/v1/capture/desk/latest.jpg").status_code == 404


def test_without_a_camera_no_detector_is_loaded(device: Process) -> None:
    assert set(device.get("/api/v1/inference/stats")["models"]) == {"silero-vad"}
    assert device.get("/readyz") == {"status": "ready"}


def test_the_device_stops_with_its_recorder(device: Process) -> None:
    (recorder,) = psutil.Process(device.process.pid).children()
    assert recorder.name() == "arecord"
    os.kill(device.process.pid, signal.SIGTERM)
    assert device.process.wait(10) == 0
    assert not recorder.is_running()
