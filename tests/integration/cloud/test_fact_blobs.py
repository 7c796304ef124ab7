"""Facts that name blobs: taken once the blob is there, which stays while they do."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import httpx2
import pytest

from primespark.core.clock import utc_now
from primespark.core.encoding import encode_body
from primespark.store import blob_collection, uploads
from tests.integration.cloud.test_gate import Gate
from tests.integration.cloud.test_uploads import Make, Uploader, data_of, gate, uploader
from tests.integration.store.builders import batch, fact

__all__ = ["gate", "uploader"]  # fixtures
ABSENT = "ab" * 32


async def push(writer: Uploader, number: int, *blobs: str | None, first: int = 1) -> httpx2.Response:
    facts = [
        fact(seq, {"name": "clip"}, "clips", data_class="inference_results", blob=blob)
        for seq, blob in enumerate(blobs, first)
    ]
    request = batch(number, facts)
    body, headers = encode_body(request.model_dump_json().encode())
    headers |= {"Idempotency-Key": f"edge-1/1/{number}", "Content-Type": "application/json", **writer.key}
    return await writer.gate.client.post("/sync/v1/push", content=body, headers=headers)


def collect(gate: Gate, days: float) -> int:
    now = utc_now() + timedelta(days=days)
    with gate.cloud.engine.begin() as connection:
        uploads.forget_old(connection, now, timedelta(days=30))
    with gate.cloud.engine.begin() as connection:
        return blob_collection.collect(connection, gate.cloud.blobs, now, timedelta(days=30))


async def test_a_batch_is_taken_once_the_blob_it_names_is_there(gate: Gate, uploader: Make) -> None:
    writer, other = await uploader("edge-1"), await uploader("edge-2")
    data = data_of(1)
    sha256 = (await other.upload(data)).sha256
    # Another device's does not count: the digest alone would get its bytes.
    for _ in range(2):
        answer = await push(writer, 1, None, sha256)
        assert (answer.status_code, answer.json()["code"]) == (409, "blob_missing")
        assert gate.count("sync.fact") == gate.count("sync.batch") == 0
    await writer.upload(data)
    for status in ("applied", "replayed"):
        answer = await push(writer, 1, None, sha256)
        assert (answer.status_code, answer.json()["status"]) == (200, status), answer.text
    assert gate.count("sync.fact") == 2


async def test_a_file_that_is_gone_is_asked_for_again(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    data = data_of(2)
    sha256 = (await writer.upload(data)).sha256
    gate.cloud.blobs.path(sha256).unlink()
    assert (await push(writer, 1, sha256)).json()["code"] == "blob_missing"
    await writer.upload(data)
    assert (await push(writer, 1, sha256)).status_code == 200


async def test_what_a_fact_names_stays_and_what_none_does_goes(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    named, unnamed = (await writer.upload(data_of(3))).sha256, (await writer.upload(data_of(4))).sha256
    assert (await push(writer, 1, named)).status_code == 200
    assert collect(gate, 31) == 1
    assert gate.count("sync.blob") == 0
    assert gate.cloud.blobs.exists(named)
    assert not gate.cloud.blobs.exists(unnamed)
    # It has to be sent again to be named again.
    assert (await push(writer, 2, named, first=2)).json()["code"] == "blob_missing"


async def test_people_read_what_a_fact_names_and_nothing_else(gate: Gate, uploader: Make) -> None:
    writer = await uploader("edge-1")
    data = data_of(5)
    named, unnamed = (await writer.upload(data)).sha256, (await writer.upload(data_of(6))).sha256
    await push(writer, 1, named)
    answer = await gate.client.get(f"/api/v1/blobs/{named}", headers={**gate.admin, "Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, data[10:20])
    for name in (unnamed, ABSENT, "x"):
        assert (await gate.client.get(f"/api/v1/blobs/{name}", headers=gate.admin)).status_code == 404
    assert (await gate.client.get(f"/api/v1/blobs/{named}", headers=writer.key)).status_code == 403
    assert (await gate.client.get(f"/api/v1/blobs/{named}")).status_code == 401
    asked = "/api/v1/lineage?device_id=edge-1&stream=clips&seq=1"
    lineage: dict[str, Any] = (await gate.client.get(asked, headers=gate.admin)).json()
    assert lineage["blob"] == named


@pytest.mark.parametrize("blob", ["", "x", "AB" * 32, "ab" * 33, 7])
async def test_a_name_that_is_none_is_refused(uploader: Make, blob: Any) -> None:
    writer = await uploader("edge-1")
    text = batch(1, [fact(1, stream="clips", data_class="metrics", blob=ABSENT)]).model_dump_json()
    value = f'"{blob}"' if isinstance(blob, str) else str(blob)
    body, headers = encode_body(text.replace(f'"{ABSENT}"', value).encode())
    headers |= {"Idempotency-Key": "edge-1/1/1", "Content-Type": "application/json", **writer.key}
    answer = await writer.gate.client.post("/sync/v1/push", content=body, headers=headers)
    assert answer.status_code == 422
