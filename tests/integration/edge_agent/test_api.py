"""The device's HTTP API over its real parts: what people beside it may ask, and what every bad request is told."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import time
import wave
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from edge_agent.agent import _build
from edge_agent.database import Database
from edge_agent.documents import Documents
from edge_agent.outgoing import Outgoing
from primespark.core.settings import load_settings
from primespark.inference import catalog
from primespark.inference.models import DETECTOR, ServedModel, load_bundled
from primespark.inference.samples import sample_images
from primespark.sync.documents import Document, write
from primespark.sync.records import DocumentChange, PulledChange, PullResponse

COFFEE = next(data for name, data in sample_images() if name == "coffee.png")
RECORDS = "/api/v1/records/configurations"


@pytest.fixture(scope="module")
def detector() -> Future[ServedModel | None]:
    loaded: Future[ServedModel | None] = Future()
    loaded.set_result(load_bundled(DETECTOR, 1, 0.4))
    return loaded


@asynccontextmanager
async def asked(
    folder: Path, detector: Future[ServedModel | None], **features: bool
) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a device that is not started, so nothing runs but what it is asked."""
    limits = {"max_body_bytes": 1_000_000, "max_audio_s": 60}
    settings = load_settings(overrides={"edge": {"inference": limits}, "features": features})
    database = Database(folder / "queue.db")
    agent = await _build(settings, folder, database, detector)
    model = detector.result()
    if model is not None:
        agent.service.slots.put(model)
    agent.app.state.database = database
    transport = httpx2.ASGITransport(app=agent.app)
    key = await asyncio.to_thread((folder / "local.key").read_text)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://edge", headers={"Authorization": f"Bearer {key}"}
    ) as client:
        yield client
    agent.service.close()
    database.close()


@pytest.fixture
async def client(tmp_path: Path, detector: Future[ServedModel | None]) -> AsyncIterator[httpx2.AsyncClient]:
    async with asked(tmp_path, detector) as client:
        yield client


async def test_without_cameras_the_detector_is_loaded_when_it_is_first_asked_for(tmp_path: Path) -> None:
    none: Future[ServedModel | None] = Future()
    none.set_result(None)
    async with asked(tmp_path, none, capture=False) as client:
        assert (await client.get("/api/v1/inference/stats")).json()["models"] == {}
        answer = await infer(client, COFFEE)
        assert answer.json()["predictions"][0]["label"] == "cup"
        assert list((await client.get("/api/v1/inference/stats")).json()["models"]) == ["coco-ssd"]


async def infer(
    client: httpx2.AsyncClient, body: bytes, media_type: str = "image/png", **query: str
) -> httpx2.Response:
    return await client.post("/api/v1/inference", content=body, params=query, headers={"Content-Type": media_type})


async def test_an_image_is_answered_with_predictions(client: httpx2.AsyncClient) -> None:
    answer = await infer(client, COFFEE, request_id="mine", priority="high", deadline_ms="60000")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body.keys() == {
        "request_id", "model", "model_version", "model_digest", "model_type", "device", "predictions", "latency_ms",
        "cached",
    }  # fmt: skip
    assert (body["request_id"], body["model"], body["device"], body["cached"]) == ("mine", "coco-ssd", "cpu", False)
    assert body["predictions"][0]["label"] == "cup"
    as_json = await client.post(
        "/api/v1/inference",
        json={"image": base64.b64encode(COFFEE).decode(), "model_type": "object_detection", "model": "coco-ssd"},
    )
    assert as_json.json()["predictions"] == body["predictions"]
    # The same file and model: known, whichever way it came.
    assert (as_json.json()["cached"], as_json.json()["latency_ms"]) == (True, 0)
    stats = (await client.get("/api/v1/inference/stats")).json()
    assert (stats["frames"], stats["requests"]) == (0, 2)
    assert stats["first_result_at"]
    assert 0 < stats["p50_ms"] <= stats["p95_ms"]
    assert stats["models"]["coco-ssd"]["digest"] == body["model_digest"]
    assert stats["hardware"].keys() == {"host", "accelerator"}
    assert stats["hardware"]["accelerator"]["unavailable"].keys() == {"temperature", "power", "throttling"}


def wave_file(samples: NDArray[np.float64], rate: int = 16_000) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("model_type", "model"),
    [
        ("classification", "efficientnet-lite0"), ("pose", "movenet-lightning"), ("segmentation", "selfie-landscape"),
        ("object_detection", "coco-ssd"),
    ],
)  # fmt: skip
async def test_each_type_of_image_model_answers_by_name_and_by_type(
    client: httpx2.AsyncClient, model_type: str, model: str
) -> None:
    by_type = (await infer(client, COFFEE, model_type=model_type)).json()
    assert (by_type["model"], by_type["model_type"]) == (model, model_type)
    assert by_type["model_digest"] == catalog.find(model).sha256
    assert by_type["predictions"]
    assert (await infer(client, COFFEE, model=model)).json()["predictions"] == by_type["predictions"]


@pytest.fixture
def recording() -> bytes:
    path = Path("/usr/share/sounds/alsa/Front_Center.wav")
    if not path.exists():
        pytest.skip(f"no {path}: apt-get install alsa-utils")
    return path.read_bytes()


async def test_a_recording_is_listened_to(client: httpx2.AsyncClient, recording: bytes) -> None:
    spoken = (await infer(client, recording, "audio/wav")).json()
    assert spoken["model"] == "silero-vad"
    assert 0.5 < sum(one["end_s"] - one["start_s"] for one in spoken["predictions"]) < 1.5
    in_json = await client.post("/api/v1/inference", json={"audio": base64.b64encode(recording).decode()})
    assert in_json.json()["predictions"] == spoken["predictions"]
    tone = np.sin(np.arange(16_000) / 16_000 * 440 * 2 * np.pi)
    assert (await infer(client, wave_file(tone), "audio/wav")).json()["predictions"] == []


async def test_bundled_models_are_loaded_once_and_the_one_least_asked_for_goes(client: httpx2.AsyncClient) -> None:
    async def loaded() -> list[str]:
        stats = (await client.get("/api/v1/inference/stats")).json()["models"]
        return sorted(stats.keys() - {"coco-ssd"})

    assert await loaded() == []
    answers = await asyncio.gather(*(infer(client, COFFEE, model_type="pose") for _ in range(8)))
    assert [answer.status_code for answer in answers] == [200] * 8
    assert await loaded() == ["movenet-lightning"]
    await infer(client, COFFEE, model_type="segmentation")
    await infer(client, COFFEE, model_type="pose")
    await infer(client, COFFEE, model_type="classification")
    assert await loaded() == ["efficientnet-lite0", "movenet-lightning"]


def huge_png() -> bytes:
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", len(header)) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IDAT"


@pytest.mark.parametrize(
    ("body", "media_type", "query", "status", "code"),
    [
        (COFFEE, "image/png", {"model": "nothing"}, 404, "unknown_model"),
        (COFFEE, "image/png", {"model_type": "astrology"}, 404, "unknown_model"),
        (COFFEE, "image/png", {"model_type": "tabular"}, 404, "unknown_model"),
        (COFFEE, "image/png", {"model_type": "audio"}, 422, "wrong_input_kind"),
        (COFFEE, "image/png", {"model": "silero-vad"}, 422, "wrong_input_kind"),
        (wave_file(np.zeros(800)), "audio/wav", {"model_type": "pose"}, 422, "wrong_input_kind"),
        (wave_file(np.zeros(16_000 * 7), rate=100), "audio/wav", {}, 422, "audio_too_long"),
        (wave_file(np.zeros(800))[:20], "audio/wav", {}, 422, "undecodable_audio"),
        (COFFEE, "audio/flac", {}, 422, "undecodable_audio"),
        (COFFEE, "image/png", {"model": "coco-ssd", "model_type": "classification"}, 422, "wrong_model_type"),
        (COFFEE, "image/png", {"request_id": "x" * 200}, 422, "invalid_input"),
        (COFFEE, "image/png", {"deadline_ms": "1"}, 504, "deadline_exceeded"),
        (COFFEE, "image/png", {"deadline_ms": "0"}, 422, "invalid_input"),
        (COFFEE, "image/png", {"priority": "urgent"}, 422, "invalid_input"),
        (COFFEE, "image/gif", {}, 415, "unsupported_media"),
        (COFFEE, "", {}, 415, "unsupported_media"),
        (COFFEE[:5000], "image/png", {}, 422, "undecodable_image"),
        (b"", "image/png", {}, 422, "undecodable_image"),
        (b"<html></html>", "image/jpeg", {}, 422, "undecodable_image"),
        (huge_png(), "image/png", {}, 422, "image_too_large"),
        (b"x" * 1_000_001, "image/png", {}, 413, "too_large"),
        (b"{", "application/json", {}, 400, "malformed"),
        (b'{"image": "!"}', "application/json", {}, 400, "bad_base64"),
        (b'{"image": 5}', "application/json", {}, 422, "invalid_input"),
        (b'{"picture": "aa"}', "application/json", {}, 422, "invalid_input"),
        (b"{}", "application/json", {}, 422, "wrong_inputs"),
        (b'{"image": "aGk=", "rows": [[1]]}', "application/json", {}, 422, "wrong_inputs"),
        (b'{"rows": [[1, 2], [3]], "model": "digits"}', "application/json", {}, 404, "unknown_model"),
        (b'{"rows": [[1, "2"]]}', "application/json", {}, 422, "invalid_input"),
        (b'{"rows": [[1e999]]}', "application/json", {}, 422, "invalid_input"),
        (b'{"rows": []}', "application/json", {}, 422, "invalid_input"),
        (b'{"audio": "!"}', "application/json", {}, 400, "bad_base64"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_inference_is_told_why(
    client: httpx2.AsyncClient, body: bytes, media_type: str, query: dict[str, str], status: int, code: str
) -> None:
    started = time.perf_counter()
    answer = await infer(client, body, media_type, **query)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ({"model_type": "llm"}, "ask POST /v1/chat/completions"),
        ({"model_type": "detection"}, "the types are object_detection, classification"),
        ({"model_type": "tabular"}, "there is coco-ssd"),
        ({"model": "yolo"}, "there is coco-ssd"),
    ],
    ids=str,
)
async def test_who_asks_for_what_is_not_there_is_told_what_is(
    client: httpx2.AsyncClient, query: dict[str, str], words: str
) -> None:
    assert words in (await infer(client, COFFEE, "image/png", **query)).json()["remedy"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/inference"), ("GET", "/api/v1/inference/stats"), ("GET", "/api/v1/offline/status"),
        ("GET", "/api/v1/offline/queue"), ("GET", "/api/v1/sync/status"), ("POST", "/api/v1/sync/run"),
        ("GET", RECORDS), ("PUT", f"{RECORDS}/twin"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("credential", ["", "Bearer wrong", "Basic eA=="])
async def test_nothing_without_the_local_key(
    client: httpx2.AsyncClient, method: str, path: str, credential: str
) -> None:
    answer = await client.request(method, path, headers={"Authorization": credential})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_a_device_without_a_cloud_says_so(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/readyz")).status_code == 200
    status = (await client.get("/api/v1/offline/status")).json()
    assert (status["online"], status["pending"], status["streams"], status["epoch"]) == (False, 0, {}, None)
    assert (await client.get("/api/v1/sync/status")).json()["phase"] == "alone"
    refused = await client.post("/api/v1/sync/run")
    assert (refused.status_code, refused.json()["code"]) == (409, "no_cloud")
    assert (await client.get("/api/v1/offline/queue?limit=0")).status_code == 422


async def test_a_document_is_written_changed_guarded_and_deleted(client: httpx2.AsyncClient) -> None:
    path = f"{RECORDS}/settings"
    assert (await client.get(path)).status_code == 404
    made = await client.put(path, json={"rate": 1, "mode": {"night": True}})
    assert (made.status_code, made.json()["scope"], made.json()["deleted"]) == (201, "edge-1", False)
    etag = made.headers["etag"]
    assert etag == f'"{made.json()["hlc"]}"'
    merge = {"Content-Type": "application/merge-patch+json"}
    changed = await client.patch(path, content=b'{"mode": {"night": null, "day": 2}}', headers=merge)
    assert (changed.status_code, changed.json()["value"]) == (200, {"rate": 1, "mode": {"day": 2}})
    stale = await client.patch(path, json={"rate": 5}, headers={"If-Match": etag})
    assert (stale.status_code, stale.json()["code"]) == (412, "precondition_failed")
    assert (await client.get(path)).json()["value"] == {"rate": 1, "mode": {"day": 2}}
    assert [item["key"] for item in (await client.get(RECORDS)).json()["items"]] == ["settings"]
    assert (await client.delete(path)).status_code == 204
    assert (await client.delete(path)).status_code == 404
    assert (await client.get(path)).status_code == 404


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def deep_object(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("PUT", f"{RECORDS}/x", [1], 422, "invalid_input"),
        ("PUT", f"{RECORDS}/x", {}, 422, "empty_document"),
        ("PUT", f"{RECORDS}/x?scope=fleet", {"a": 1}, 403, "not_owner"),
        ("PATCH", f"{RECORDS}/x", {"desired": {"a": 1}}, 403, "not_owner"),
        ("PUT", f"{RECORDS}/-x", {"a": 1}, 422, "invalid_input"),
        ("PUT", "/api/v1/records/telemetry/x", {"a": 1}, 404, "not_found"),
        ("PUT", "/api/v1/records/nothing/x", {"a": 1}, 422, "invalid_input"),
        ("PUT", f"{RECORDS}/x", {"a\nb": 1}, 422, "bad_document"),
        ("PUT", f"{RECORDS}/x", {"a": "\0"}, 422, "unstorable_value"),
        ("PUT", f"{RECORDS}/x", {"a": "\ud800"}, 400, "malformed"),
        ("PUT", f"{RECORDS}/x", {"a" * 600: 1}, 422, "bad_document"),
        ("PUT", f"{RECORDS}/x", {"a": nested(260)}, 422, "document_too_deep"),
        ("PATCH", f"{RECORDS}/x", {"a": nested(260)}, 422, "document_too_deep"),
        ("PATCH", f"{RECORDS}/x", deep_object(900), 422, "document_too_deep"),
        ("PUT", f"{RECORDS}/x", {"a": "x" * 17_000_000}, 413, "too_large"),
    ],
)
async def test_a_bad_write_is_told_why(
    client: httpx2.AsyncClient, method: str, path: str, body: Any, status: int, code: str
) -> None:
    answer = await client.request(method, path, content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert (await client.get(RECORDS)).json()["items"] == []


async def test_what_the_cloud_desires_is_not_deleted_here(client: httpx2.AsyncClient) -> None:
    documents: Documents = client._transport.app.state.device.documents  # type: ignore[attr-defined]
    database: Database = client._transport.app.state.database  # type: ignore[attr-defined]
    # Only an enrolled device takes what the cloud says.
    await Outgoing(database, "edge-1", 500, 1_000_000).begin_epoch(1)
    document = write(Document(), {"desired": {"rate": 1}}, replica="cloud", counter=1, hlc="1790000000000-0000-cloud")
    change = DocumentChange.model_validate(
        {
            "data_class": "configurations", "scope": "edge-1", "key": "twin", "op": "put", "vv": document.vv,
            "hlc": document.hlc, "leaf_hlc": document.leaf_hlc, "value": document.value,
        }
    )  # fmt: skip
    await documents.apply(
        PullResponse(
            changes=[PulledChange(cursor=1, change=change)], next_cursor=1, has_more=False, server_epoch=1,
            server_hlc="1790000000000-0000-cloud",
        ),
        0,
    )  # fmt: skip
    assert (await client.delete(f"{RECORDS}/twin")).status_code == 403
    assert (await client.get(f"{RECORDS}/twin")).json()["value"] == {"desired": {"rate": 1}}
