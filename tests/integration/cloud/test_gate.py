"""The gate over HTTP with a real PostgreSQL: what devices may do, and what every bad request is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, event, text

from primespark.cloud.main import build, build_app
from primespark.cloud.state import Cloud
from primespark.core.encoding import content_digest, encode_body
from primespark.core.paths import write_private
from primespark.core.settings import Settings, load_settings
from primespark.core.web.server import bind
from primespark.embedded.ports import choose_port
from primespark.errors import ConfigurationError
from primespark.store import access, database, devices, documents, groups

MOMENT = "2026-11-20T10:00:00.000000Z"


def fact(seq: int, stream: str = "telemetry", **changes: Any) -> dict[str, Any]:
    return {
        "data_class": stream, "op": "append", "stream": stream, "seq": seq, "time": MOMENT, "boot_id": "boot",
        "monotonic_ns": seq, "value": {"cpu_percent": float(seq)}, **changes,
    }  # fmt: skip


def batch(batch_seq: int, records: list[dict[str, Any]], device_id: str = "edge-1", epoch: int = 1) -> dict[str, Any]:
    return {
        "v": 1, "replica_id": device_id, "epoch": epoch, "batch_seq": batch_seq,
        "hlc": f"{1_790_000_000_000:013d}-0000-{device_id}", "records": records,
    }  # fmt: skip


class Gate:
    """A device's and a person's view of the gate."""

    def __init__(self, client: httpx2.AsyncClient, cloud: Cloud, admin_key: str) -> None:
        self.client = client
        self.cloud = cloud
        self.admin = {"Authorization": f"Bearer {admin_key}"}

    async def token(self, **changes: Any) -> str:
        answer = await self.client.post("/api/v1/devices/tokens", json=changes, headers=self.admin)
        assert answer.status_code == 201
        return str(answer.json()["token"])

    async def enrol(self, device_id: str = "edge-1") -> dict[str, str]:
        answer = await self.client.post("/sync/v1/enroll", json={"token": await self.token(), "device_id": device_id})
        assert answer.status_code == 200, answer.text
        assert answer.json()["epoch"] == 1
        return {"Authorization": f"Bearer {answer.json()['key']}"}

    async def push(self, key: dict[str, str], body: Any, **headers: str) -> httpx2.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent, described = encode_body(raw)
        return await self.client.post(
            "/sync/v1/push", content=sent, headers={"Content-Type": "application/json", **described, **key, **headers}
        )

    def count(self, table: str) -> int:
        with self.cloud.engine.connect() as connection:
            return int(connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one())


def settings_of(engine: Engine) -> Settings:
    url = engine.url.render_as_string(hide_password=False)
    return load_settings(overrides={"cloud": {"store": {"url": url}, "max_body_bytes": 1_000_000}})


@pytest.fixture
async def gate(store_engine: Engine, tmp_path: Path) -> AsyncIterator[Gate]:
    cloud = await asyncio.to_thread(build, settings_of(store_engine), tmp_path)
    app = build_app(cloud)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://cloud") as client,
    ):
        yield Gate(client, cloud, (tmp_path / "cloud" / "admin.key").read_text())
    cloud.engine.dispose()


async def test_a_batch_is_applied_once_and_answered_alike(gate: Gate) -> None:
    key = await gate.enrol()
    body = batch(1, [fact(1), fact(2)])
    first, second = await gate.push(key, body), await gate.push(key, body)
    assert (first.json()["status"], second.json()["status"]) == ("applied", "replayed")
    assert first.json()["ack_batch_seq"] == second.json()["ack_batch_seq"] == 1
    assert gate.count("sync.fact") == 2
    assert gate.count("metrics.sample") == 2


async def test_concurrent_copies_of_one_batch_store_it_once(gate: Gate) -> None:
    key = await gate.enrol()
    answers = await asyncio.gather(*(gate.push(key, batch(1, [fact(1)])) for _ in range(6)))
    assert sorted(answer.json()["status"] for answer in answers) == ["applied"] + ["replayed"] * 5
    assert gate.count("sync.fact") == 1


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"{", {}, 400, "malformed"),
        (b"[" * 5000, {}, 400, "malformed"),
        (b'{"v": NaN}', {}, 422, None),
        (batch(1, [fact(1)], device_id="edge-2"), {}, 403, "wrong_device"),
        (batch(1, [fact(1)]), {"Content-Digest": "sha-256=:AAAA:"}, 400, "bad_digest"),
        (batch(1, [fact(1)]), {"Content-Encoding": "br"}, 415, "unsupported_media"),
        (batch(1, [fact(1)]), {"Idempotency-Key": "edge-1/1/2"}, 400, "bad_idempotency_key"),
        (batch(1, [fact(0)]), {}, 422, "invalid_input"),
        (batch(1, [fact(1, value="text")]), {}, 422, "invalid_input"),
        (batch(1, [{"op": "steal"}]), {}, 422, "invalid_input"),
        (batch(1, [fact(2)]), {}, 409, "seq_gap"),
        (batch(3, [fact(1)]), {}, 409, "batch_gap"),
        (batch(1, [fact(1)], epoch=9), {}, 409, "unknown_epoch"),
        (b"x" * 1_100_000, {"Content-Encoding": "identity"}, 413, "too_large"),
    ],
)  # fmt: skip
async def test_a_bad_batch_is_refused_whole(
    gate: Gate, body: Any, headers: dict[str, str], status: int, code: str | None
) -> None:
    key = await gate.enrol()
    if body == b"x" * 1_100_000:
        answer = await gate.client.post("/sync/v1/push", content=body, headers={**key, "Content-Digest": "x"})
    else:
        answer = await gate.push(key, body, **headers)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    if code is not None:
        assert answer.json()["code"] == code
    assert gate.count("sync.fact") == gate.count("sync.batch") == 0
    assert (await gate.push(key, batch(1, [fact(1)]))).status_code == 200


async def test_a_fact_too_large_for_a_message_is_rejected_and_on_record(gate: Gate) -> None:
    key = await gate.enrol()
    answer = await gate.push(key, batch(1, [fact(1, value={"text": "x" * 110_000}), fact(2)]))
    (result,) = answer.json()["results"]
    assert (result["index"], result["status"], result["code"]) == (0, "rejected", "fact_too_large")
    assert (gate.count("sync.fact"), gate.count("sync.lost")) == (1, 1)


async def test_a_bomb_is_refused_before_it_unpacks(gate: Gate) -> None:
    key = await gate.enrol()
    sent, headers = encode_body(b" " * 50_000_000)
    assert len(sent) < 100_000
    answer = await gate.client.post("/sync/v1/push", content=sent, headers={**headers, **key})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_another_batch_under_the_same_key_is_a_clone(gate: Gate) -> None:
    key = await gate.enrol()
    await gate.push(key, batch(1, [fact(1)]))
    answer = await gate.push(key, batch(1, [fact(1, value={"cpu_percent": 99.0})]))
    assert (answer.status_code, answer.json()["code"]) == (409, "replica_cloned")


@pytest.mark.parametrize("credential", [{}, {"Authorization": "Bearer nothing"}, {"Authorization": "Basic eA=="}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/sync/v1/push"), ("GET", "/sync/v1/pull"), ("POST", "/sync/v1/epoch"),
        ("GET", f"/sync/v1/blobs/{'0' * 64}"), ("GET", "/api/v1/devices"), ("POST", "/api/v1/devices/tokens"),
        ("POST", "/api/v1/labels"), ("POST", "/api/v1/analytics/query"),
    ],
)  # fmt: skip
async def test_nothing_without_a_credential(gate: Gate, credential: dict[str, str], method: str, path: str) -> None:
    answer = await gate.client.request(method, path, headers=credential)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_a_device_may_not_act_as_a_person(gate: Gate) -> None:
    key = await gate.enrol()
    for method, path in (("GET", "/api/v1/devices"), ("POST", "/api/v1/devices/tokens")):
        assert (await gate.client.request(method, path, headers=key)).status_code == 403
    assert (await gate.client.get("/sync/v1/pull", headers=gate.admin)).status_code == 403


async def test_tokens_end(gate: Gate) -> None:
    token = await gate.token(uses=1)
    assert (await gate.client.post("/sync/v1/enroll", json={"token": token, "device_id": "edge-1"})).status_code == 200
    second = await gate.client.post("/sync/v1/enroll", json={"token": token, "device_id": "edge-2"})
    assert (second.status_code, second.json()["code"]) == (401, "bad_token")
    expired = await gate.cloud.transact(lambda connection: devices.create_token(connection, 1, timedelta(seconds=-1)))
    third = await gate.client.post("/sync/v1/enroll", json={"token": expired, "device_id": "edge-3"})
    assert (third.status_code, third.json()["code"]) == (401, "bad_token")
    for reserved in ("cloud", "fleet", "Edge", "-x", ""):
        answer = await gate.client.post("/sync/v1/enroll", json={"token": token, "device_id": reserved})
        assert answer.status_code == 422


async def test_a_forgotten_device_is_out_at_once(gate: Gate) -> None:
    key = await gate.enrol()
    assert (await gate.client.delete("/api/v1/devices/edge-1", headers=gate.admin)).status_code == 204
    assert (await gate.push(key, batch(1, [fact(1)]))).status_code == 401
    assert (await gate.client.delete("/api/v1/devices/edge-9", headers=gate.admin)).status_code == 404


async def test_a_waiting_pull_is_answered_by_a_write(gate: Gate) -> None:
    key = await gate.enrol()
    start = (await gate.client.get("/sync/v1/pull", headers=key)).json()["next_cursor"]
    waiting = asyncio.create_task(gate.client.get(f"/sync/v1/pull?cursor={start}&wait=20", headers=key))
    async with asyncio.timeout(5):
        while not gate.cloud.notifier._waiting:  # noqa: ASYNC110 (a dictionary, which sets no event)
            await asyncio.sleep(0.002)
    patched = await gate.client.patch(
        "/api/v1/devices/edge-1/records/configurations/twin", json={"desired": {"rate": 3}}, headers=gate.admin
    )
    assert patched.status_code == 201
    page = (await asyncio.wait_for(waiting, 10)).json()
    (change,) = page["changes"]
    assert change["change"]["value"] == {"desired": {"rate": 3}}
    again = await gate.client.get(f"/sync/v1/pull?cursor={page['next_cursor']}", headers=key)
    assert again.json()["changes"] == []


@contextmanager
def count_page_reads(engine: Engine) -> Iterator[list[str]]:
    """The statements by which pulls read their pages."""
    reads: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM sync.document" in statement and "ORDER BY sync.document.log_seq" in statement:
            reads.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield reads
    finally:
        event.remove(engine, "before_cursor_execute", note)


@pytest.mark.parametrize("scope", ["edge-1", "group:a", "fleet"])
async def test_a_waiting_pull_is_woken_by_its_scopes_and_nothing_else(gate: Gate, scope: str) -> None:
    key, other = await gate.enrol(), await gate.enrol("edge-2")

    def write(scope: str) -> None:
        with gate.cloud.engine.begin() as connection:
            documents.write_cloud(connection, scope, "light", {"on": True})

    with gate.cloud.engine.begin() as connection:
        groups.join(connection, "edge-1", "a")
    start = (await gate.client.get("/sync/v1/pull?groups=a", headers=key)).json()["next_cursor"]
    with count_page_reads(gate.cloud.engine) as reads:
        waiting = asyncio.create_task(gate.client.get(f"/sync/v1/pull?cursor={start}&wait=20&groups=a", headers=key))
        async with asyncio.timeout(5):
            while not any(gate.cloud.notifier._waiting.values()):  # noqa: ASYNC110 (a dictionary, which sets no event)
                await asyncio.sleep(0.002)
        for number in range(1, 6):
            assert (await gate.push(other, batch(number, [fact(number)], "edge-2"))).status_code == 200
            await asyncio.to_thread(write, "edge-2" if number % 2 else "group:b")
        assert not waiting.done()
        await asyncio.to_thread(write, scope)
        page = (await asyncio.wait_for(waiting, 10)).json()
    assert [change["change"]["scope"] for change in page["changes"]] == [scope]
    assert len(reads) == 2


async def test_a_pull_that_is_refused_waits_for_nothing_any_more(gate: Gate) -> None:
    key = await gate.enrol()
    with gate.cloud.engine.begin() as connection:
        connection.execute(text("UPDATE sync.round SET tombstone_watermark = 100"))
    answer = await gate.client.get("/sync/v1/pull?cursor=5&wait=20", headers=key)
    assert (answer.status_code, answer.json()["code"]) == (410, "must_resync")
    await asyncio.sleep(0)  # one turn of the loop, in which the ticket goes
    assert not gate.cloud.notifier._waiting


async def test_waiting_pulls_end_when_the_service_stops(gate: Gate) -> None:
    key = await gate.enrol()
    start = (await gate.client.get("/sync/v1/pull", headers=key)).json()["next_cursor"]
    waiting = asyncio.create_task(gate.client.get(f"/sync/v1/pull?cursor={start}&wait=50", headers=key))

    async def closed() -> None:
        while not waiting.done():
            gate.cloud.notifier.close()
            await asyncio.sleep(0.01)

    await asyncio.wait_for(closed(), 5)
    assert waiting.result().status_code == 200


async def test_if_match_is_honoured(gate: Gate) -> None:
    await gate.enrol()
    path = "/api/v1/devices/edge-1/records/configurations/twin"
    first = await gate.client.patch(path, json={"desired": {"rate": 1}}, headers=gate.admin)
    stale = first.headers["etag"]
    assert (
        await gate.client.patch(path, json={"desired": {"rate": 2}}, headers={**gate.admin, "If-Match": stale})
    ).is_success
    answer = await gate.client.patch(path, json={"desired": {"rate": 3}}, headers={**gate.admin, "If-Match": stale})
    assert (answer.status_code, answer.json()["code"]) == (412, "precondition_failed")


async def test_a_device_reads_only_blobs_that_its_documents_name(gate: Gate) -> None:
    key, other = await gate.enrol("edge-1"), await gate.enrol("edge-2")
    data = b"model bytes" * 100
    sha256 = gate.cloud.blobs.put(data)
    assert (await gate.client.get(f"/sync/v1/blobs/{sha256}", headers=key)).status_code == 404
    patch = {"desired": {"models": {"digits": {"artifacts": [sha256]}}}}
    await gate.cloud.transact(lambda connection: documents.write_cloud(connection, "edge-1", "twin", patch))
    whole = await gate.client.get(f"/sync/v1/blobs/{sha256}", headers=key)
    assert (whole.status_code, whole.content) == (200, data)
    part = await gate.client.get(f"/sync/v1/blobs/{sha256}", headers={**key, "Range": "bytes=5-9"})
    assert (part.status_code, part.content) == (206, data[5:10])
    assert (await gate.client.get(f"/sync/v1/blobs/{sha256}", headers=other)).status_code == 404
    assert (await gate.client.get("/sync/v1/blobs/..%2f..%2fetc", headers=key)).status_code == 404


@pytest.mark.parametrize(
    ("image", "status"),
    [("", 422), ("!!!", 422), ("aGVsbG8=", 422), ("A" * 100_000, 413)],
    ids=["empty", "no base64", "no image", "too long"],
)
async def test_a_bad_label_is_refused(gate: Gate, image: str, status: int) -> None:
    body = {"dataset": "digits", "sample": "one", "label": "1", "image_png_base64": image}
    answer = await gate.client.post("/api/v1/labels", json=body, headers=gate.admin)
    assert answer.status_code == status, answer.text
    assert answer.json()["code"] in {"invalid_input", "undecodable_image", "too_large"}
    assert gate.count("control.label") == 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/api/v1/devices/%00", None),
        ("DELETE", "/api/v1/devices/%00", None),
        ("POST", "/api/v1/devices/%00/rotate", None),
        ("GET", "/api/v1/devices/edge-1/records/configurations/%00", None),
        ("GET", "/api/v1/devices/%00/records/configurations/twin", None),
        ("PATCH", "/api/v1/devices/edge-1/records/configurations/%00", {"desired": {"rate": 1}}),
        ("PATCH", "/api/v1/devices/edge-1/records/configurations/twin", {"desired": {"rate": "\0"}}),
        ("GET", "/api/v1/labels?dataset=%00", None),
        ("GET", "/api/v1/labels?dataset=digits&after=%00", None),
        ("POST", "/api/v1/labels", {"dataset": "digits", "sample": "1", "label": "a\0b", "image_png_base64": ""}),
        ("POST", "/api/v1/analytics/insert", {"metrics": [{"metric_name": "a", "value": 1.0, "device_id": "\0"}]}),
        ("POST", "/api/v1/analytics/insert", {"metrics": [{"metric_name": "a", "value": 1.0, "source": "\0"}]}),
        ("POST", "/api/v1/analytics/insert", {"metrics": [{"metric_name": "a", "value": 1.0, "labels": {"\0": ""}}]}),
    ],
)
async def test_what_no_database_keeps_is_no_error_of_ours(gate: Gate, method: str, path: str, body: Any) -> None:
    await gate.enrol()
    answer = await gate.client.request(method, path, json=body, headers=gate.admin)
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json"), answer.text


@pytest.mark.parametrize("is_length_told", [True, False])
async def test_a_large_enrolment_is_refused(gate: Gate, is_length_told: bool) -> None:
    body = json.dumps({"token": "t" * 16, "device_id": "edge-1", **{f"k{n}": 1 for n in range(5000)}}).encode()

    async def piecewise() -> AsyncIterator[bytes]:
        yield body

    answer = await gate.client.post(
        "/sync/v1/enroll", content=body if is_length_told else piecewise(), headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


async def test_a_batch_beyond_its_deadline_is_applied_once_all_the_same(gate: Gate) -> None:
    key, body = await gate.enrol(), batch(1, [fact(1)])
    hasty = build_app(replace(gate.cloud, push_deadline_s=0.2))
    with gate.cloud.engine.connect() as blocker:
        blocker.execute(text("LOCK TABLE sync.fact IN ACCESS EXCLUSIVE MODE"))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=hasty), base_url="http://cloud") as client:
            late = await Gate(client, gate.cloud, "").push(key, body)
            assert (late.status_code, late.json()["code"]) == (504, "deadline_exceeded")
            assert late.headers["retry-after"] == "1"
    again = await gate.push(key, body)
    assert (again.status_code, again.json()["ack_batch_seq"]) == (200, 1)
    assert gate.count("sync.fact") == gate.count("sync.batch") == 1


async def test_readiness_does_not_wait_for_a_silent_store(gate: Gate) -> None:
    # As a stopped PostgreSQL: the kernel takes the connection, and nobody answers.
    with bind("127.0.0.1", 0) as silent:
        silent.listen()
        dead = build_app(behind_port(gate.cloud, silent.getsockname()[1]))
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=dead), base_url="http://cloud") as client:
            async with asyncio.timeout(4):
                ready = await client.get("/readyz")
        assert (ready.status_code, list(ready.json()["missing"])) == (503, ["store"])


@pytest.mark.parametrize("content", ["", "\n", "short"])
def test_an_admin_key_that_was_cut_off_opens_nothing(store_engine: Engine, tmp_path: Path, content: str) -> None:
    write_private(tmp_path / "cloud" / "admin.key", content.encode())
    with pytest.raises(ConfigurationError, match=r"admin\.key"):
        build(settings_of(store_engine), tmp_path)


def test_an_admin_key_may_end_with_a_line(store_engine: Engine, tmp_path: Path) -> None:
    key = "k" * 20
    write_private(tmp_path / "cloud" / "admin.key", f"{key}\n".encode())
    build(settings_of(store_engine), tmp_path).engine.dispose()
    with store_engine.begin() as connection:
        assert access.find_api_key(connection, key) == ("admin", "admin")


async def test_metrics_are_stored_together_or_not_at_all(gate: Gate) -> None:
    good = {"metric_name": "temperature_celsius", "value": 20.0, "time": MOMENT, "device_id": "edge-1"}
    bad = {**good, "value": "warm"}
    refused = await gate.client.post("/api/v1/analytics/insert", json={"metrics": [good, bad]}, headers=gate.admin)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["loc"].startswith("metrics.1")
    assert gate.count("metrics.sample") == 0
    stored = await gate.client.post("/api/v1/analytics/insert", json={"metrics": [good]}, headers=gate.admin)
    again = await gate.client.post("/api/v1/analytics/insert", json={"metrics": [good]}, headers=gate.admin)
    assert stored.json() == {"inserted": 1, "duplicates": 0}
    assert again.json() == {"inserted": 0, "duplicates": 1}
    query = {
        "metric_name": "temperature_celsius", "aggregation": "avg", "granularity": "hour",
        "time_range": ["2026-11-20T00:00:00Z", "2026-11-21T00:00:00Z"], "group_by": ["device_id"],
    }  # fmt: skip
    answer = await gate.client.post("/api/v1/analytics/query", json=query, headers=gate.admin)
    (series,) = answer.json()["series"]
    assert series == {"group": {"device_id": "edge-1"}, "points": [["2026-11-20T10:00:00.000000Z", 20.0]]}


async def test_a_store_that_does_not_answer_is_a_503(gate: Gate) -> None:
    key = await gate.enrol()
    dead = build_dead(gate.cloud)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=build_app(dead)), base_url="http://cloud"
    ) as client:
        answer = await client.post(
            "/sync/v1/push", content=b"{}", headers={**key, "Content-Digest": content_digest(b"{}")}
        )
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert (await client.get("/livez")).status_code == 200
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "store" in ready.json()["missing"]


def build_dead(cloud: Cloud) -> Cloud:
    """The same cloud with its store behind a port that nothing listens on."""
    return behind_port(cloud, choose_port(0, set()))


def behind_port(cloud: Cloud, port: int) -> Cloud:
    """The same cloud with its store behind another port."""
    url = cloud.engine.url.set(port=port).render_as_string(hide_password=False)
    return replace(cloud, engine=database.connect(url, 1))
