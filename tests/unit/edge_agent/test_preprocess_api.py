"""`POST /api/v1/preprocess`: what comes back, and what every bad request is told."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edge_agent import preprocess_api
from edge_agent.preprocessing import AudioPreprocessor, EdgePreprocessingPipeline, ImagePreprocessor
from primespark.core.web import Principal, Role, create_app
from primespark.core.web.bodies import MAX_ANSWERED_BYTES
from primespark.inference.letterbox import Letterbox, to_nchw
from tests.unit.inference.files import encode, noise
from tests.unit.inference.sounds import encode_audio, tone

PICTURE = noise(30, 50)
PNG = encode(Image.fromarray(PICTURE))
WAV = encode_audio(tone(0.5), 16_000)
Query = list[tuple[str, str | int | float | bool | None]]
SMALL: Query = [("resize_dims", "64"), ("resize_dims", "48")]


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async def authenticate(token: str) -> Principal:
        return Principal(token, Role(token))

    async def nothing() -> dict[str, Any]:
        return {}

    app = create_app(
        title="t",
        authenticate=authenticate,
        routers=[preprocess_api.router],
        readiness=nothing,
        summary=nothing,
        max_body_bytes=1_000_000,
        open_health=False,
    )
    pipeline = app.state.preprocessing = EdgePreprocessingPipeline(ImagePreprocessor(10_000), AudioPreprocessor(2))
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://t") as client:
        client.headers["Authorization"] = f"Bearer {Role.OPERATOR.value}"
        yield client
    pipeline.close()


async def send(client: httpx2.AsyncClient, body: bytes, media_type: str, query: Query | None = None) -> httpx2.Response:
    headers = {"Content-Type": media_type}
    return await client.post("/api/v1/preprocess", content=body, params=query or [], headers=headers)


def array_of(tensor: dict[str, Any]) -> NDArray[Any]:
    kind = np.dtype(tensor["dtype"]).newbyteorder("<")
    return np.frombuffer(base64.b64decode(tensor["data"]), kind).reshape(tensor["shape"])


async def test_an_image_comes_back_as_a_tensor(client: httpx2.AsyncClient) -> None:
    answer = (await send(client, PNG, "image/png", SMALL)).json()
    box = Letterbox(50, 30, 64, 48)
    np.testing.assert_array_equal(array_of(answer["tensor"]), to_nchw(box.apply(PICTURE)))
    assert answer["letterbox"] == {
        "source_width": 50, "source_height": 30, "left": 0, "top": 5, "width": 64, "height": 38,
    }  # fmt: skip
    assert (answer["data_type"], answer["jpeg"]) == ("image", None)


async def test_bytes_and_a_file_may_be_asked_for(client: httpx2.AsyncClient) -> None:
    query: Query = [*SMALL, ("layout", "nhwc_uint8"), ("quality", "80")]
    answer = (await send(client, PNG, "image/png", query)).json()
    np.testing.assert_array_equal(array_of(answer["tensor"]), Letterbox(50, 30, 64, 48).apply(PICTURE))
    assert base64.b64decode(answer["jpeg"]).startswith(b"\xff\xd8")


async def test_a_sound_comes_back_with_features(client: httpx2.AsyncClient) -> None:
    query: Query = [("noise_reduction", "false"), ("mel_bands", "40")]
    answer = (await send(client, WAV, "audio/wav", query)).json()
    np.testing.assert_allclose(array_of(answer["samples"]), tone(0.5), atol=1 / 32768)
    assert (answer["features"]["shape"], answer["sample_rate"]) == ([40, 50], 16_000)
    assert (await send(client, WAV, "audio/wav", [("mel_bands", "0")])).json()["features"] is None


async def test_a_series_comes_back_as_windows(client: httpx2.AsyncClient) -> None:
    body = b'{"times_s": [0, 10, 130], "values": [20.5, 21.5, null]}'
    answer = (await send(client, body, "application/json", [("window_s", "60")])).json()
    empty = {"count": 0, "mean": None, "std": None, "min": None, "max": None}
    assert answer == {
        "data_type": "sensor",
        "windows": [
            {"start_s": 0, "count": 2, "invalid": 0, "mean": 21, "std": 0.5, "min": 20.5, "max": 21.5},
            {"start_s": 60, "invalid": 0, **empty},
            {"start_s": 120, "invalid": 1, **empty},
        ],
    }


@pytest.mark.parametrize(
    ("body", "media_type", "query", "status", "code"),
    [
        (PNG, "text/plain", [], 415, "unsupported_media"),
        (PNG, "", [], 415, "unsupported_media"),
        (b"", "image/png", [], 422, "undecodable_image"),
        (WAV, "image/jpeg", [], 422, "undecodable_image"),
        (encode(Image.new("L", (101, 100))), "image/png", [], 422, "image_too_large"),
        (PNG, "audio/wav", [], 422, "undecodable_audio"),
        (WAV[:44], "audio/wav", [], 422, "undecodable_audio"),
        (encode_audio(tone(2.1), 16_000), "audio/flac", [], 422, "audio_too_long"),
        (encode_audio(tone(0.005), 16_000), "audio/wav", [], 422, "audio_too_short"),
        (b"{", "application/json", [], 400, "malformed"),
        (b"[]", "application/json", [], 422, "invalid_input"),
        (b'{"times_s": ["0"], "values": [1]}', "application/json", [], 422, "invalid_input"),
        (b'{"times_s": [null], "values": [1]}', "application/json", [], 422, "invalid_input"),
        (b'{"times_s": [0], "values": [1, 2]}', "application/json", [], 422, "bad_series"),
        (b'{"times_s": [0, 1e300], "values": [1, 2]}', "application/json", [], 422, "bad_series"),
        (b'{"times_s": [0, 1e9], "values": [1, 2]}', "application/json", [], 422, "too_many_windows"),
        (PNG, "image/png", [("resize_dims", "64")], 422, "invalid_input"),
        (PNG, "image/png", [("resize_dims", "0"), ("resize_dims", "48")], 422, "invalid_input"),
        (PNG, "image/png", [("layout", "chw")], 422, "invalid_input"),
        (PNG, "image/png", [("colour", "red")], 422, "invalid_input"),
        (WAV, "audio/wav", [("sample_rate", "nan")], 422, "invalid_input"),
        (b'{"times_s": [], "values": []}', "application/json", [("window_s", "inf")], 422, "invalid_input"),
        (bytes(1_000_001), "image/png", [], 413, "too_large"),
    ],
)
async def test_what_cannot_be_done_is_told(
    client: httpx2.AsyncClient, body: bytes, media_type: str, query: Query, status: int, code: str
) -> None:
    answer = await send(client, body, media_type, query)
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"


async def test_who_may_only_look_may_not_make_work(client: httpx2.AsyncClient) -> None:
    client.headers["Authorization"] = f"Bearer {Role.VIEWER.value}"
    assert (await send(client, PNG, "image/png")).status_code == 403


async def test_answers_that_are_not_read_leave_no_room_for_more(client: httpx2.AsyncClient) -> None:
    app = client._transport.app  # type: ignore[attr-defined]
    unread: dict[str, Any] = {}
    app.state.body_budget.take_answer(unread, MAX_ANSWERED_BYTES)
    answer = await send(client, PNG, "image/png", SMALL)
    assert (answer.status_code, answer.json()["code"]) == (429, "overloaded")
    app.state.body_budget.release(unread)
    for body, media_type in ((PNG, "image/png"), (WAV, "audio/wav")) * 2:
        assert (await send(client, body, media_type, SMALL)).status_code == 200
    # All is given back, or this would be refused.
    app.state.body_budget.take_answer(unread, MAX_ANSWERED_BYTES)
    app.state.body_budget.take_answer({}, 0)
