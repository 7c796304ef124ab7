"""Prometheus' remote write, byte by byte, against the cloud and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from primespark.cloud.main import build_app
from primespark.core.web.bodies import MINIMUM_BUDGET_BYTES
from tests.helpers import rounds
from tests.integration.cloud.test_gate import Gate, build_dead, gate
from tests.integration.edge_agent.test_with_cloud import RunningCloud, running_cloud
from tests.unit.cloud.test_remote_write import MS, VALID, named, nested, packed, sample, series, varint

__all__ = ["gate", "running_cloud"]
HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
T0 = datetime.fromtimestamp(MS // 60_000 * 60, UTC)
_numbers = itertools.count()


async def post(gate: Gate, body: bytes, **headers: str) -> Any:
    given_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gate.client.post("/api/v1/write", content=body, headers={**gate.admin, **HEADERS, **given_headers})


# Of one second, kind and machine: a value.
Sent = dict[tuple[str, str], dict[int, float]]
FLOATS = st.floats() | st.floats(-1e6, 1e6)
KINDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
SENT = st.dictionaries(
    st.tuples(st.sampled_from(["edge-1:80", "edge-2", "10.0.0.7:80"]), KINDS),
    st.dictionaries(st.integers(0, 119), FLOATS, max_size=6),
    max_size=4,
)


def written(sent: Sent, job: str) -> list[bytes]:
    return [
        series(
            named(job=job, instance=instance, kind=kind),
            *(sample(value, int(T0.timestamp() * 1000) + second * 1000 + 7) for second, value in values.items()),
        )
        for (instance, kind), values in sent.items()
    ]


@pytest.mark.prove
@given(sent=SENT, dice=st.randoms(use_true_random=False))
@settings(max_examples=rounds(15, 500), suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_sent_is_what_a_query_returns(running_cloud: RunningCloud, sent: Sent, dice: random.Random) -> None:
    job = f"oven-{next(_numbers)}"
    key = (running_cloud.cloud.blobs.root.parent / "cloud" / "admin.key").read_text()
    parts = written(sent, job)
    dice.shuffle(parts)
    half = len(parts) // 2
    with httpx2.Client(
        base_url=f"http://127.0.0.1:{running_cloud.port}", headers={"Authorization": f"Bearer {key}"}
    ) as client:
        # The first half twice, and again with the second.
        statuses = [
            client.post("/api/v1/write", content=packed(b"".join(some)), headers=HEADERS).status_code
            for some in (parts[:half], parts[:half], parts)
        ]
        are_storable = all(not abs(value) > 1e140 for values in sent.values() for value in values.values())
        assert statuses[-1] == (204 if are_storable else 400)
        asked = {
            "metric_name": "power_watts", "aggregation": ["sum", "count"], "granularity": "second",
            "time_range": [T0.isoformat(), (T0 + timedelta(minutes=2)).isoformat()],
            "group_by": ["device_id", "labels.kind", "labels.instance"], "filters": [["source", "=", job]],
        }  # fmt: skip
        found = client.post("/api/v1/analytics/query", json=asked).json()["series"]
    assert {
        (group["device_id"], group["labels.instance"], group["labels.kind"]): points
        for group, points in ((each["group"], each["points"]) for each in found)
    } == {
        (
            "" if instance[0] == "1" else instance[:6],
            None if instance == "edge-2" else instance,
            kind,
        ): [
            [(T0 + timedelta(seconds=second)).isoformat(timespec="microseconds").replace("+00:00", "Z"), value, 1]
            for second, value in sorted(storable.items())
        ]
        for (instance, kind), values in sent.items()
        if (storable := {second: value for second, value in values.items() if abs(value) <= 1e140})
    }


async def test_a_replay_changes_nothing(gate: Gate) -> None:
    for _ in range(2):
        answer = await post(gate, packed(VALID))
        assert (answer.status_code, answer.content) == (204, b"")
    other = VALID.replace(b"\xf8\x3f", b"\xf8\x40")
    assert other != VALID
    assert (await post(gate, packed(other))).status_code == 204
    assert gate.count("metrics.sample") == 2
    assert gate.count("metrics.sample WHERE value = 1.5") == 1


async def test_what_cannot_be_stored_is_told_and_all_else_is_stored(gate: Gate) -> None:
    bad = series(named(kind="bad"), sample(math.inf), sample(1e200))
    answer = await post(gate, packed(bad + VALID))
    assert (answer.status_code, answer.headers["content-type"]) == (400, "text/plain; charset=utf-8")
    assert answer.text.startswith("2 samples cannot be stored, the first since: power_watts: not a finite number")
    assert "samples_refused" in answer.text
    assert gate.count("metrics.sample") == 2


async def test_what_became_of_samples_is_counted(gate: Gate) -> None:
    def counted() -> list[float]:
        values = (
            REGISTRY.get_sample_value("primespark_intake_samples_total", {"door": "remote_write", "outcome": outcome})
            for outcome in ("inserted", "duplicate", "beyond_retention", "refused", "skipped")
        )
        return [value or 0.0 for value in values]

    before = counted()
    for body in (VALID, VALID + series(named(kind="bad"), sample(math.inf), *[sample(math.nan)] * 3)):
        await post(gate, packed(body))
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 2, 0, 1, 3]


async def test_metadata_alone_is_nothing_to_store(gate: Gate) -> None:
    assert (await post(gate, packed(b"\x1a\x04\x08\x01\x12\x00"))).status_code == 204
    assert (await post(gate, packed(b""))).status_code == 204


BAD_REQUESTS: list[tuple[bytes, dict[str, str], int]] = [
    (b"", {}, 400),
    (b"\xff\xff", {}, 400),
    (packed(b"\xff\xff"), {}, 400),
    (packed(VALID)[:-1], {}, 400),
    (packed(VALID) + b"x", {}, 400),
    (VALID, {}, 400),
    (packed(VALID), {"Content_Encoding": "identity"}, 415),
    (packed(nested(5, VALID)), {}, 400),
    (packed(VALID), {"Content_Encoding": "gzip"}, 415),
    (packed(VALID), {"Content_Type": "application/json"}, 415),
    (packed(VALID), {"Content_Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"}, 415),
    (packed(VALID), {"X_Prometheus_Remote_Write_Version": "2.0.0"}, 415),
    (varint(5_000_000) + bytes(100), {}, 413),
    (packed(series(named(), *[sample(1.0)] * 50_001)), {}, 413),
    (bytes(1_000_001), {}, 413),
    (packed(VALID), {"Authorization": ""}, 401),
    (packed(VALID), {"Authorization": "Bearer nobody"}, 401),
]


async def test_a_bad_request_is_told_as_the_protocol_does(gate: Gate) -> None:
    for body, headers, status in BAD_REQUESTS:
        answer = await post(gate, body, **headers)
        assert answer.status_code == status, (body[:20], headers, answer.text)
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.text
    assert gate.count("metrics.sample") == 0


@pytest.mark.parametrize(
    "content_type", ["application/x-protobuf; proto=prometheus.WriteRequest", "Application/X-Protobuf"]
)
async def test_version_one_may_be_named_in_the_content_type(gate: Gate, content_type: str) -> None:
    assert (await post(gate, packed(VALID), Content_Type=content_type)).status_code == 204


async def test_a_device_may_not(gate: Gate) -> None:
    answer = await post(gate, packed(VALID), **await gate.enrol())
    assert (answer.status_code, gate.count("metrics.sample")) == (403, 0)
    assert "forbidden" in answer.text


async def test_what_may_be_sent_again_is_told_with_a_5xx(gate: Gate) -> None:
    transport = httpx2.ASGITransport(app=build_app(build_dead(gate.cloud)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client:
        answer = await client.post("/api/v1/write", content=packed(VALID), headers={**gate.admin, **HEADERS})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "store_unavailable" in answer.text
    # Elsewhere a 429, upon which Prometheus would throw the samples away.
    app = build_app(gate.cloud)
    app.state.body_budget.take({}, MINIMUM_BUDGET_BYTES)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://cloud") as client:
        answer = await client.post("/api/v1/write", content=packed(VALID), headers={**gate.admin, **HEADERS})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert gate.count("metrics.sample") == 0


async def test_whatever_is_sent_is_no_error_of_ours(gate: Gate) -> None:
    dice = random.Random(7)
    for is_inside in [False, True] * 50:
        body = bytearray(VALID if is_inside else packed(VALID))
        for _ in range(dice.randrange(1, 4)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        before = await asyncio.to_thread(gate.count, "metrics.sample")
        answer = await post(gate, packed(bytes(body)) if is_inside else bytes(body))
        assert answer.status_code in (204, 400, 413), answer.content
        if answer.status_code != 204 and "samples_refused" not in answer.text:
            assert await asyncio.to_thread(gate.count, "metrics.sample") == before
