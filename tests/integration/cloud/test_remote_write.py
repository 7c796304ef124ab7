"""Prometheus' remote write against the cloud and a real PostgreSQL: by Debian's Prometheus, and byte by byte."""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from primespark.cloud.main import build_app
from primespark.core.web.bodies import MINIMUM_BUDGET_BYTES
from primespark.embedded.ports import choose_port
from tests.helpers import rounds, wait_until
from tests.integration.cloud.test_gate import Gate, build_dead, gate
from tests.integration.crash.test_cloud_kills import CloudHome
from tests.integration.edge_agent.test_with_cloud import RunningCloud, running_cloud
from tests.unit.cloud.test_remote_write import MS, VALID, named, nested, packed, sample, series, varint

__all__ = ["gate", "running_cloud"]
PROMETHEUS = shutil.which("prometheus")
HEADERS = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    "X-Prometheus-Remote-Write-Version": "0.1.0",
}
SCRAPES = """
global: {{scrape_interval: 100ms, scrape_timeout: 100ms}}
scrape_configs:
  - job_name: oven
    static_configs: [{{targets: ["127.0.0.1:{oven}"]}}]
  - job_name: cloud
    scrape_interval: 500ms
    scrape_timeout: 500ms
    authorization: {{credentials_file: {key}}}
    static_configs: [{{targets: ["{cloud}"]}}]
"""
PAGE = (Path(__file__).parents[3] / "docs" / "analytics.md").read_text(encoding="utf-8")
(DOCUMENTED,) = re.findall(r"```yaml\n(remote_write:.*?)```", PAGE, re.DOTALL)
IN_A_HURRY = """\
      batch_send_deadline: 50ms
      min_backoff: 30ms
      max_backoff: 100ms
"""
T0 = datetime.fromtimestamp(MS // 60_000 * 60, UTC)
_numbers = itertools.count()


class Oven:
    """Tells its metrics as text: one counts how often it was asked, one has no value, and one ends."""

    def __init__(self) -> None:
        oven = self
        self.asked = 0
        self.has_bread = True

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                oven.asked += 1
                bread = f'loaves{{kind="rye"}} {oven.asked / 7}\n' if oven.has_bread else ""
                body = f"asked_total {oven.asked}\nmood NaN\n{bread}".encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port

    @contextmanager
    def served(self) -> Iterator[None]:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            self._server.shutdown()
            self._server.server_close()


@contextmanager
def prometheus(folder: Path, oven: int, cloud: str, key: Path) -> Iterator[str]:
    """Debian's, as it is packaged, that writes as is documented; where it answers."""
    assert PROMETHEUS is not None
    writes = DOCUMENTED.replace("127.0.0.1:8080", cloud).replace("/etc/prometheus/primespark.key", str(key))
    assert cloud in writes
    assert str(key) in writes
    scrapes = SCRAPES.format(oven=oven, cloud=cloud, key=key)
    (folder / "prometheus.yml").write_text(scrapes + writes + IN_A_HURRY)
    port = choose_port(0, set())
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stderr=log,
        )  # fmt: skip
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            # It would wait a minute for a cloud that is gone.
            process.kill()
            process.wait()


def kept_by_prometheus(url: str, job: str) -> set[tuple[str, str, str, int, float]]:
    """Metric, job, kind, time in milliseconds and value of each sample that Prometheus itself has."""
    answer = httpx2.get(f"{url}/api/v1/query", params={"query": f'{{job="{job}"}}[1h]'}).json()
    return {
        (found["metric"]["__name__"], found["metric"]["job"], found["metric"].get("kind", ""), round(at * 1000), value)
        for found in answer["data"]["result"]
        for at, shown in found["values"]
        if math.isfinite(value := float(shown))
    }


def stored(engine: Engine, source: str) -> set[tuple[str, str, str, int, float]]:
    """The same of the store."""
    with engine.connect() as connection:
        rows = connection.execute(
            text(
                "SELECT s.metric, s.source, coalesce(s.labels->>'kind', ''), extract(epoch FROM m.time) * 1000, m.value"
                " FROM metrics.sample m JOIN metrics.series s USING (series_id) WHERE s.source = :source"
            ),
            {"source": source},
        )
        return {(metric, job, kind, int(at), value) for metric, job, kind, at, value in rows}


@pytest.mark.skipif(PROMETHEUS is None, reason="no Prometheus: apt-get install prometheus")
def test_all_that_a_prometheus_has_is_stored_despite_a_kill_of_the_cloud(store_engine: Engine, tmp_path: Path) -> None:
    home, oven = CloudHome(tmp_path, store_engine.url.render_as_string(hide_password=False)), Oven()
    address, key = home.url.removeprefix("http://"), tmp_path / "home" / "cloud" / "admin.key"

    def tells_of(metric: str, source: str) -> bool:
        return metric in {name for name, *_ in stored(store_engine, source)}

    # It looks for what to scrape after five seconds, in which the cloud starts.
    with oven.served(), prometheus(tmp_path, oven.port, address, key) as url:
        cloud = home.start()
        try:
            wait_until(lambda: tells_of("loaves", "oven") and tells_of("primespark_gate_waiting_requests", "cloud"), 30)
            cloud.kill()
            oven.has_bread = False
            before = oven.asked
            wait_until(lambda: oven.asked > before + 5)
            meanwhile = range(before + 1, oven.asked)
            cloud = home.start()
            kept = {source: kept_by_prometheus(url, source) for source in ("oven", "cloud")}
            for source in kept:
                wait_until(partial(lambda source: stored(store_engine, source) >= kept[source], source), 30)
                found = stored(store_engine, source)
                assert found <= kept_by_prometheus(url, source)
            metrics = httpx2.get(f"{home.url}/metrics", headers={"Authorization": f"Bearer {key.read_text()}"}).text
        finally:
            cloud.kill()
    assert {value for name, *_, value in kept["oven"] if name == "asked_total"} & set(meanwhile)
    assert ("loaves", "rye") in {(name, kind) for name, _, kind, *_ in kept["oven"]}
    assert 'primespark_intake_samples_total{door="remote_write",outcome="skipped"}' in metrics


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
