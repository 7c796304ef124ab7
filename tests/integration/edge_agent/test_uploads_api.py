"""`/api/v1/uploads`: a file of any kind and more bytes than other bodies may have, kept with what is said of it."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future
from pathlib import Path

import pytest

from primespark.inference.models import ServedModel
from tests.integration.edge_agent.test_api import asked

DATA = bytes(range(256)) * 8192  # 2 MiB, where 1 MB is the bound of other bodies


async def test_a_file_is_kept_and_shown(tmp_path: Path) -> None:
    detector: Future[ServedModel | None] = Future()
    detector.set_result(None)
    async with asked(tmp_path, detector, capture=False) as client:
        parameters = {"stream": "clips", "value": '{"door": 3}'}
        taken = await client.post(
            "/api/v1/uploads", params=parameters, content=DATA, headers={"Content-Type": "audio/wav"}
        )
        assert taken.status_code == 201, taken.text
        (shown,) = (await client.get("/api/v1/uploads")).json()["items"]
        assert shown == taken.json()
        assert (shown["sha256"], shown["size"]) == (hashlib.sha256(DATA).hexdigest(), len(DATA))
        assert (shown["stream"], shown["is_there"]) == ("clips", False)
        assert (tmp_path / "uploads" / shown["id"]).read_bytes() == DATA
        status = (await client.get("/api/v1/offline/status")).json()
        assert status["uploads"] == {"waiting": 1, "bytes": len(DATA)}
        assert (await client.post("/api/v1/uploads", headers={"Authorization": ""})).status_code == 401


@pytest.mark.parametrize(
    ("parameters", "headers", "status"),
    [
        ({"value": "7"}, {}, 422),
        ({"value": "{"}, {}, 400),
        ({"data_class": "labels"}, {}, 422),
        ({"stream": "a b"}, {}, 422),
        ({}, {"Content-Encoding": "gzip"}, 415),
        ({}, {"Content-Length": "999999999999"}, 413),
    ],
)
async def test_what_is_not_taken_leaves_nothing(
    tmp_path: Path, parameters: dict[str, str], headers: dict[str, str], status: int
) -> None:
    detector: Future[ServedModel | None] = Future()
    detector.set_result(None)
    async with asked(tmp_path, detector, capture=False) as client:
        answer = await client.post("/api/v1/uploads", params=parameters, content=b"x", headers=headers)
        assert answer.status_code == status, answer.text
        assert (await client.get("/api/v1/uploads")).json()["items"] == []
    assert not (tmp_path / "uploads").exists() or not list((tmp_path / "uploads").iterdir())
