"""The device: how soon it is ready with a full queue, how much memory it holds, how much of a disk it takes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import httpx2

from benchmarks.result import Result
from edge_agent.database import Database
from edge_agent.queue import NewFact, OfflineQueue
from primespark.core.settings import OfflineSettings
from primespark.embedded.ports import choose_port
from primespark.inference.samples import sample_images
from primespark.sync.records import DataClass

QUEUED = 100_000
_BATCH = 1000
_STARTS = 3
_READY_LIMIT_S = 3.0
_INSTALLED_LIMIT_MB = 200.0
_IDLE_LIMIT_MB, _SERVING_LIMIT_MB = 130.0, 230.0
_DEVICE = "edge-1"
_REQUESTS = 50
_IMAGE = "coffee.png"


def run() -> Iterator[Result]:
    """Starts with an empty and with a full queue, in turn; then memory before the first model and with the detector."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        homes = {"empty": Path(folder) / "empty", "full": Path(folder) / "full"}
        for name, home in homes.items():
            (home / "edge" / _DEVICE).mkdir(parents=True, mode=0o700)
            _fill(home / "edge" / _DEVICE / "queue.db", QUEUED if name == "full" else 0)
        ready: dict[str, list[float]] = {name: [] for name in homes}
        # One start of each before those that count: the files are read from memory then.
        for number in range(_STARTS + 1):
            for name, home in homes.items():
                with _started(home) as (_, seconds, _):
                    if number:
                        ready[name].append(seconds)
        yield _against_empty(median(ready["full"]), median(ready["empty"]))
        with _started(homes["empty"]) as (process, _, ask):
            idle = _resident_mb(process.pid)
            for _ in range(_REQUESTS):
                ask()
            serving = _resident_mb(process.pid)
    yield _limited("packages of the extra `edge` on aarch64", _installed_mb(), "MB", _INSTALLED_LIMIT_MB)
    yield _limited("resident memory, no model loaded", idle, "MB", _IDLE_LIMIT_MB)
    yield _limited("resident memory, answering with coco-ssd", serving, "MB", _SERVING_LIMIT_MB)


def _fill(path: Path, facts: int) -> None:
    database = Database(path)
    queue = OfflineQueue(database, OfflineSettings())
    for first in range(0, facts, _BATCH):
        queue.submit([NewFact(DataClass.TELEMETRY, {"n": first + number}) for number in range(_BATCH)]).result()
    database.close()


@contextmanager
def _started(home: Path) -> Iterator[tuple[subprocess.Popen[bytes], float, Callable[[], None]]]:
    """A device alone, the seconds until it was ready, and a call that asks the detector once."""
    port = choose_port(0, set())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PRIMESPARK_")}
    environment |= {"PRIMESPARK_HOME": str(home), "PRIMESPARK_EDGE__PORT": str(port)}
    environment |= {"PRIMESPARK_FEATURES__CAPTURE": "false", "PRIMESPARK_FEATURES__TELEMETRY": "false"}
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "primespark.cli.main", "edge"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            while not _is_ready(client):
                if process.poll() is not None or time.perf_counter() - begun > 60:
                    raise RuntimeError("the device did not start")
                time.sleep(0.005)
            yield process, time.perf_counter() - begun, lambda: _ask(client, home)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _is_ready(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.HTTPError:
        return False


def _ask(client: httpx2.Client, home: Path) -> None:
    key = (home / "edge" / _DEVICE / "local.key").read_text()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/png"}
    answer = client.post("/api/v1/inference", content=dict(sample_images())[_IMAGE], headers=headers)
    assert answer.json()["predictions"][0]["label"] == "cup", answer.text


def _resident_mb(process_id: int) -> float:
    pages = int(Path(f"/proc/{process_id}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _installed_mb() -> float:
    """Bytes of all that the lock of the extra names, installed from wheels for a Raspberry Pi."""
    root = Path(__file__).parents[1]
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder:
        command = [
            str(root / ".tools" / "uv" / "bin" / "uv"), "pip", "install", "--quiet", "--require-hashes",
            "--only-binary", ":all:", "--python-platform", "aarch64-unknown-linux-gnu", "--python-version", "3.11",
            "--target", folder, "-r", str(root / "requirements" / "edge.lock"),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e6


def _against_empty(full: float, empty: float) -> Result:
    return Result(
        area="device", name=f"ready with {QUEUED:,} operations queued", value=full, unit="s",
        against="the same with an empty queue", reference=empty, ratio=full / empty,
        goal=f"<= {_READY_LIMIT_S:g} s", ok=full <= _READY_LIMIT_S,
    )  # fmt: skip


def _limited(name: str, value: float, unit: str, limit: float) -> Result:
    return Result(
        area="device", name=name, value=value, unit=unit, against="the promised limit", reference=limit,
        ratio=value / limit, goal="<= 1", ok=value <= limit,
    )  # fmt: skip
