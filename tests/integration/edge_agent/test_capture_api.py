"""What cameras see over HTTP, on a running device: sources, latest frames, snapshots, the stream of events."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from primespark.inference.samples import sample_images
from tests.helpers import wait_until
from tests.integration.edge_agent.test_process import Process, running


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    home = tmp_path_factory.mktemp("device")
    folder = home / "yard"
    folder.mkdir()
    (folder / "coffee.png").write_bytes(next(data for name, data in sample_images() if name == "coffee.png"))
    rule = {"name": "cup-seen", "labels": ["cup"], "cool_down_s": 0.5}
    gone = {"name": "gone", "url": "http://127.0.0.1:9/video"}
    (home / "torn.png").write_bytes(b"no image")
    misspelt = {"name": "anybody", "labels": ["cup", "prson"]}
    torn = {"name": "torn", "path": str(home / "torn.png"), "rules": [misspelt]}
    settings = {
        "PRIMESPARK_EDGE__CAPTURE__SOURCES": json.dumps(
            [{"name": "yard", "path": str(folder), "rules": [rule]}, gone, torn]
        ),
        "PRIMESPARK_EDGE__CAPTURE__HARD_EXAMPLES": json.dumps({"daily_bytes": 10_000_000}),
        "PRIMESPARK_EDGE__CAPTURE__FRAMES_PER_SECOND": "10",
        "PRIMESPARK_EDGE__CAPTURE__TRACKING__MAX_GAP_S": "0.01",
    }
    with running(home, **settings) as running_device:
        wait_until(lambda: running_device.sees(3), 60)
        yield running_device


def ask(device: Process, path: str, **query: Any) -> httpx2.Response:
    key = (device.folder / "local.key").read_text()
    return httpx2.get(device.url + path, params=query, headers={"Authorization": f"Bearer {key}"}, timeout=10)


@contextlib.contextmanager
def listening(device: Process) -> Iterator[Iterator[str]]:
    key = (device.folder / "local.key").read_text()
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.stream("GET", f"{device.url}/api/v1/events", headers=headers, timeout=20) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield answer.iter_lines()


def test_sources_say_how_they_stand(device: Process) -> None:
    wait_until(lambda: device.get("/health")["sources"]["gone"] == "reconnecting", 30)
    health = device.get("/health")
    assert health["sources"]["yard"] == "live"
    assert health["status"] == "degraded"
    assert health["sources_failed"].keys() == {"gone", "torn"}
    yard, gone, torn = device.get("/api/v1/capture")["items"]
    assert (yard["name"], yard["kind"], yard["fault"], yard["rules"]) == ("yard", "path", None, ["cup-seen"])
    assert (yard["frame_fault"], yard["warning"], gone["frame_fault"]) == (None, None, None)
    assert (torn["fault"], torn["frame_fault"]) == (None, health["sources_failed"]["torn"])
    assert torn["warning"] == "rule anybody: the detector knows no 'prson'"
    assert (gone["kind"], gone["last_frame_at"]) == ("url", None)
    assert gone["reconnects"] >= 1
    metrics = ask(device, "/metrics").text
    assert 'primespark_capture_source_up{source="yard"} 1.0' in metrics
    assert 'primespark_capture_source_up{source="gone"} 0.0' in metrics


def test_the_latest_frame_is_seen_with_its_boxes(device: Process) -> None:
    answer = ask(device, "/api/v1/capture/yard/latest.jpg")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/jpeg")
    assert answer.headers["cache-control"] == "no-store"
    bare = ask(device, "/api/v1/capture/yard/latest.jpg", boxes=False)
    with_boxes, without = (np.asarray(Image.open(io.BytesIO(one.content)), np.int16) for one in (answer, bare))
    assert with_boxes.shape == without.shape
    assert np.abs(with_boxes - without).max() > 100
    for name in ("gone", "nothing", "..%2Fyard"):
        missing = ask(device, f"/api/v1/capture/{name}/latest.jpg")
        assert missing.status_code == 404, missing.text


def test_snapshots_are_listed_and_fetched(device: Process) -> None:
    wait_until(lambda: len(ask(device, "/api/v1/snapshots").json()["items"]) >= 3, 30)
    page = ask(device, "/api/v1/snapshots", limit=2).json()
    first, second = page["items"]
    assert (first["event"], first["source"], first["label"]) == ("cup-seen", "yard", "cup")
    assert first["time"] > second["time"]
    older = ask(device, "/api/v1/snapshots", limit=2, cursor=page["next_cursor"]).json()["items"]
    assert older[0]["id"] < second["id"]
    picture = ask(device, f"/api/v1/snapshots/{first['id']}")
    assert (picture.status_code, picture.headers["content-type"]) == (200, "image/jpeg")
    assert len(picture.content) == first["bytes"]
    (example, *_) = ask(device, "/api/v1/snapshots", kind="example").json()["items"]
    assert example["reason"] in ("novelty", "uncertainty")
    assert ask(device, f"/api/v1/snapshots/{example['id']}").status_code == 200


@pytest.mark.parametrize(
    ("path", "query", "status"),
    [
        ("/api/v1/snapshots/..%2F..%2Flocal.key", {}, 404),
        ("/api/v1/snapshots/event-0000000000000-00000000", {}, 404),
        ("/api/v1/snapshots/%00", {}, 404),
        ("/api/v1/snapshots", {"limit": 0}, 422),
        ("/api/v1/snapshots", {"kind": "all"}, 422),
        ("/api/v1/snapshots", {"cursor": "x" * 65}, 422),
    ],
    ids=str,
)
def test_what_is_not_there_is_told(device: Process, path: str, query: dict[str, Any], status: int) -> None:
    answer = ask(device, path, **query)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    "path", ["/capture", "/capture/yard/latest.jpg", "/snapshots", "/snapshots/event-1", "/events"]
)
def test_a_stranger_sees_nothing(device: Process, path: str) -> None:
    assert httpx2.get(f"{device.url}/api/v1{path}").status_code == 401


def test_results_and_events_come_as_they_happen(device: Process) -> None:
    found: dict[str, dict[str, Any]] = {}
    with listening(device) as lines:
        for line in lines:
            if line.startswith("event: "):
                found[line.removeprefix("event: ")] = json.loads(next(lines).removeprefix("data: "))
            if found.keys() >= {"result", "event"}:
                break
    assert found["result"]["source"] == "yard/coffee.png"
    assert "cup" in {one["label"] for one in found["result"]["predictions"]}
    assert found["event"]["event"] == "cup-seen"
    assert ask(device, f"/api/v1/snapshots/{found['event']['snapshot']}").status_code == 200


def test_a_client_that_left_is_forgotten(device: Process) -> None:
    with listening(device) as lines:
        next(lines)
        assert "primespark_event_stream_listeners 1.0" in ask(device, "/metrics").text
    wait_until(lambda: "primespark_event_stream_listeners 0.0" in ask(device, "/metrics").text, 10)


def test_a_device_stops_at_once_with_a_client_that_listens_and_a_camera_that_does_not_answer(tmp_path: Path) -> None:
    # Connections are taken by the kernel, and nobody ever answers them.
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/video"
        sources = json.dumps(["samples", {"name": "silent", "url": url}])
        stopping = stack.enter_context(running(tmp_path, PRIMESPARK_EDGE__CAPTURE__SOURCES=sources))
        wait_until(lambda: stopping.sees(1), 60)
        with listening(stopping) as lines:
            next(lines)
            started = time.monotonic()
            os.kill(stopping.process.pid, signal.SIGTERM)
            for _ in lines:
                pass
            assert stopping.process.wait(10) == 0
            assert time.monotonic() - started < 4
