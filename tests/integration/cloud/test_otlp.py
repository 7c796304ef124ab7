"""OpenTelemetry's own exporter, unmodified, against the cloud and a real PostgreSQL."""

from __future__ import annotations

import asyncio
import gzip
import random
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
from google.protobuf.json_format import MessageToJson
from google.rpc.status_pb2 import Status
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, MetricExportResult
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from sqlalchemy import Engine, text

from primespark.cloud.main import build_app
from tests.integration.cloud.test_gate import Gate, build_dead, gate
from tests.integration.edge_agent.test_with_cloud import RunningCloud, running_cloud
from tests.unit.cloud.test_otlp import TIME, VALID, attributes, request
from tests.unit.cloud.test_otlp import gauge as gauge_metric

__all__ = ["gate", "running_cloud"]
# An SDK makes an id of its own for an instance that has none, another at each start.
RESOURCE = {"service.name": "oven", "service.instance.id": "upper", "host.name": "edge-1"}
PROTOBUF = {"Content-Type": "application/x-protobuf"}


def stored(engine: Engine) -> dict[tuple[str, str], float]:
    """The newest value of each series, by its name and its labels beside the scope and the instance."""
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT s.metric, s.device_id, s.source, s.labels, l.value FROM metrics.last_sample l"
                " JOIN metrics.series s USING (series_id)"
            )
        )
        found = {}
        for metric, device_id, source, labels, value in rows:
            assert (device_id, source) == ("edge-1", "oven")
            assert (labels.pop("otel.scope.name"), labels.pop("service.instance.id")) == ("meter", "upper")
            found[metric, ",".join(labels.values())] = value
        return found


def measure(reader: InMemoryMetricReader, views: tuple[View, ...] = ()) -> None:
    provider = MeterProvider([reader], Resource.create(RESOURCE), views=views)
    meter = provider.get_meter("meter")
    loaves = meter.create_counter("loaves")
    loaves.add(2, {"kind": "rye"})
    loaves.add(3, {"kind": "rye"})
    meter.create_up_down_counter("in_oven").add(-1)
    meter.create_gauge("temperature").set(221.5)
    baked = meter.create_histogram("baked", explicit_bucket_boundaries_advisory=[10, 20])
    for minutes in (5, 15, 15, 40):
        baked.record(minutes)


def exporter(cloud: RunningCloud, compression: Compression) -> OTLPMetricExporter:
    key = (cloud.cloud.blobs.root.parent / "cloud" / "admin.key").read_text()
    return OTLPMetricExporter(
        f"http://127.0.0.1:{cloud.port}/v1/metrics",
        headers={"Authorization": f"Bearer {key}"},
        compression=compression,
        timeout=10,
    )


@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_what_an_exporter_sends_is_stored_once(running_cloud: RunningCloud, compression: Compression) -> None:
    reader = InMemoryMetricReader()
    measure(reader)
    data = reader.get_metrics_data()
    assert data is not None
    for _ in range(2):
        assert exporter(running_cloud, compression).export(data) is MetricExportResult.SUCCESS
    assert stored(running_cloud.cloud.engine) == {
        ("loaves", "rye"): 5.0, ("in_oven", ""): -1.0, ("temperature", ""): 221.5,
        ("baked_count", ""): 4.0, ("baked_sum", ""): 75.0, ("baked_min", ""): 5.0, ("baked_max", ""): 40.0,
        ("baked_bucket", "10.0"): 1.0, ("baked_bucket", "20.0"): 3.0, ("baked_bucket", "+Inf"): 4.0,
    }  # fmt: skip
    with running_cloud.cloud.engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM metrics.sample")).scalar_one() == 10


def test_deltas_and_exponential_histograms_are_stored(running_cloud: RunningCloud) -> None:
    delta: Mapping[type, AggregationTemporality] = dict.fromkeys((Counter, Histogram), AggregationTemporality.DELTA)
    reader = InMemoryMetricReader(preferred_temporality=dict(delta))
    measure(reader, (View(instrument_type=Histogram, aggregation=ExponentialBucketHistogramAggregation()),))
    data = reader.get_metrics_data()
    assert data is not None
    assert exporter(running_cloud, Compression.NoCompression).export(data) is MetricExportResult.SUCCESS
    assert stored(running_cloud.cloud.engine) == {
        ("loaves", "rye"): 5.0, ("in_oven", ""): -1.0, ("temperature", ""): 221.5,
        ("baked_count", ""): 4.0, ("baked_sum", ""): 75.0, ("baked_min", ""): 5.0, ("baked_max", ""): 40.0,
    }  # fmt: skip


async def post(gate: Gate, body: bytes, **headers: str) -> Any:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return await gate.client.post("/v1/metrics", content=body, headers={**gate.admin, **PROTOBUF, **given})


@pytest.mark.parametrize("is_json", [False, True])
async def test_the_answer_counts_what_cannot_be_stored(gate: Gate, is_json: bool) -> None:
    good, bad = {"asDouble": 1, **TIME}, {"asDouble": "NaN", **TIME}
    asked = request(gauge_metric(good, bad, {**bad, "attributes": attributes(room="a")}))
    if is_json:
        answer = await post(gate, MessageToJson(asked).encode(), Content_Type="application/json; charset=utf-8")
        assert answer.headers["content-type"] == "application/json"
        partial = answer.json()["partialSuccess"]
        assert partial["rejectedDataPoints"] == "2"
        assert partial["errorMessage"].startswith("power_watts: not a finite number")
    else:
        answer = await post(gate, asked.SerializeToString())
        assert answer.headers["content-type"] == "application/x-protobuf"
        assert ExportMetricsServiceResponse.FromString(answer.content).partial_success.rejected_data_points == 2
    assert answer.status_code == 200
    assert gate.count("metrics.sample") == 1
    whole = await post(gate, VALID)
    assert (whole.status_code, whole.content) == (200, b"")


BAD_REQUESTS: list[tuple[bytes, dict[str, str], int]] = [
    (b"\xff\xff", {}, 400),
    (b"{", {"Content_Type": "application/json"}, 400),
    (b"[]", {"Content_Type": "application/json"}, 400),
    (VALID, {"Content_Type": "text/plain"}, 415),
    (VALID, {"Content_Encoding": "zstd"}, 415),
    (VALID, {"Content_Encoding": "gzip"}, 400),
    (gzip.compress(VALID)[:-1], {"Content_Encoding": "gzip"}, 400),
    (gzip.compress(VALID) + b"x", {"Content_Encoding": "gzip"}, 400),
    (gzip.compress(bytes(50_000_000)), {"Content_Encoding": "gzip"}, 413),
    (bytes(1_000_001), {}, 413),
    (VALID, {"Authorization": ""}, 401),
    (VALID, {"Authorization": "Bearer nobody"}, 401),
]


async def test_a_bad_request_is_told_as_the_protocol_does(gate: Gate) -> None:
    for body, headers, status in BAD_REQUESTS:
        answer = await post(gate, body, **headers)
        assert answer.status_code == status, (body[:20], headers)
        if headers.get("Content_Type") == "application/json":
            assert answer.json()["message"]
        else:
            assert answer.headers["content-type"] == "application/x-protobuf"
            assert Status.FromString(answer.content).message
    assert gate.count("metrics.sample") == 0


async def test_a_device_may_not(gate: Gate) -> None:
    answer = await post(gate, VALID, **await gate.enrol())
    assert answer.status_code == 403
    assert "forbidden" in Status.FromString(answer.content).message


async def test_a_store_that_does_not_answer_is_told_when_to_try_again(gate: Gate) -> None:
    transport = httpx2.ASGITransport(app=build_app(build_dead(gate.cloud)))
    async with httpx2.AsyncClient(transport=transport, base_url="http://cloud") as client:
        answer = await client.post("/v1/metrics", content=VALID, headers={**gate.admin, **PROTOBUF})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert "store_unavailable" in Status.FromString(answer.content).message


async def test_whatever_is_sent_is_no_error_of_ours(gate: Gate) -> None:
    dice = random.Random(7)
    for _ in range(150):
        body = bytearray(VALID)
        for _ in range(dice.randrange(1, 4)):
            body[dice.randrange(len(body))] = dice.randrange(256)
        before = await asyncio.to_thread(gate.count, "metrics.sample")
        answer = await post(gate, bytes(body))
        assert answer.status_code in (200, 400), answer.content
        if answer.status_code == 400:
            assert await asyncio.to_thread(gate.count, "metrics.sample") == before
