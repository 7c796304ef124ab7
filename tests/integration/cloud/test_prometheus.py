"""Debian's Prometheus, unmodified, writes to the cloud, which is killed meanwhile."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import Engine, text

from primespark.embedded.ports import choose_port
from tests.helpers import wait_until
from tests.integration.crash.test_cloud_kills import CloudHome

PROMETHEUS = shutil.which("prometheus")
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
COUNTED = 'primespark_intake_samples_total{{door="remote_write",outcome="{}"}}'
IN_A_HURRY = """\
      batch_send_deadline: 50ms
      min_backoff: 30ms
      max_backoff: 100ms
"""


class Oven:
    """Tells its metrics as text: how often it was asked, one without a value, and bread, which ends in fire."""

    def __init__(self) -> None:
        oven = self
        self.asked = 0
        self.has_bread = True

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                oven.asked += 1
                bread = f'loaves{{kind="rye"}} {oven.asked / 7}\n' if oven.has_bread else "heat +Inf\n"
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


def value_of(metrics: str, beginning: str) -> float:
    """Of the only line that begins so."""
    (line,) = (line for line in metrics.splitlines() if line.startswith(beginning))
    return float(line.rpartition(" ")[2])


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
            answers = httpx2.get(f"{url}/metrics").text
        finally:
            cloud.kill()
    assert {value for name, *_, value in kept["oven"] if name == "asked_total"} & set(meanwhile)
    assert ("loaves", "rye") in {(name, kind) for name, _, kind, *_ in kept["oven"]}
    # What cannot be stored held up nothing, and nothing else was given up for it.
    counted = {outcome: value_of(metrics, COUNTED.format(outcome)) for outcome in ("inserted", "skipped", "refused")}
    assert min(counted.values()) > 0, counted
    assert value_of(answers, "prometheus_remote_storage_samples_retried_total") > 0
