"""What edge batches cost Dagster: processor time of its code server and daemon, with a real store between.

A tick costs the same however many batches it records, and gathers those of 30 s. So the cost of one batch is that of a
tick divided by the batches it found; both are given. A device that looks twice a second pushes a batch a second.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import psutil
from sqlalchemy import Engine

from benchmarks.processes import postgres, process, wait
from benchmarks.result import Result
from primespark.core.clock import Timestamp, utc_now
from primespark.core.identifiers import sha256_hex
from primespark.embedded.dagster import CODE_SERVER, LOCATION
from primespark.store import database, devices, gate
from primespark.sync.records import DataClass, Fact, PushRequest

BATCHES_OF_A_TICK = (1, 15, 150)
FACTS_OF_A_BATCH = 3
GOAL_MS = 10.0
# Half of what one device at two frames a second pushes while a tick gathers.
PROMISED_FROM = 15
TICKS = 4
DEVICE = "edge-1"
# The daemon visits a sensor every five seconds; the next tick has begun to wait after this time.
_CYCLE_S = 8.0
_IDLE_S = 16.0
_START_S = 60.0


def run() -> Iterator[Result]:
    """Milliseconds of processor time for ticks with 1, 15 and 150 batches, less what the processes use idle."""
    with tempfile.TemporaryDirectory(prefix="ps-bench-") as folder, ExitStack() as stack:
        url = stack.enter_context(postgres(Path(folder)))
        engine = database.connect(url)
        database.migrate(engine)
        stack.callback(engine.dispose)
        sender = _Sender(engine)
        processes = stack.enter_context(_dagster(Path(folder), url, sender))
        idle_ms_per_s = _idle(processes)
        per_tick = {n: _tick_ms(processes, sender, n, idle_ms_per_s) for n in BATCHES_OF_A_TICK}
    for batches, cost_ms in per_tick.items():
        yield _result(batches, cost_ms)


def _result(batches: int, cost_ms: float) -> Result:
    per_batch, is_promised = cost_ms / batches, batches >= PROMISED_FROM
    return Result(
        area="dagster", name=f"one edge batch in Dagster, {batches} to a tick of {cost_ms:.0f} ms", value=per_batch,
        unit="ms CPU", against=f"{GOAL_MS:.0f} ms a batch, from {PROMISED_FROM} to a tick on", reference=GOAL_MS,
        ratio=per_batch / GOAL_MS, goal="<= 1" if is_promised else "none: too few to share a tick",
        ok=per_batch <= GOAL_MS or not is_promised,
    )  # fmt: skip


class _Sender:
    """A device that pushes into the store."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pushed = 0
        with engine.begin() as connection:
            token = devices.create_token(connection, 1, timedelta(hours=1))
            devices.enrol(connection, token, DEVICE, {}, {})

    def push(self, batches: int) -> None:
        """So many batches in one commit, so that one tick finds them all."""
        with self._engine.begin() as connection:
            for _ in range(batches):
                self._pushed += 1
                request = _batch(self._pushed)
                digest = sha256_hex(request.model_dump_json().encode())
                gate.apply_batch(connection, request, digest, utc_now())


def _batch(number: int) -> PushRequest:
    """Facts of two streams, as of a device that looks and measures itself."""
    first, now = (number - 1) * FACTS_OF_A_BATCH + 1, utc_now()
    facts = [
        Fact(
            data_class=DataClass.INFERENCE_RESULTS, stream="inference_results", seq=seq, time=now, boot_id="boot",
            monotonic_ns=seq, value={"model": "coco-ssd", "predictions": []},
        )
        for seq in range(first, first + FACTS_OF_A_BATCH)
    ]  # fmt: skip
    facts.append(
        Fact(
            data_class=DataClass.TELEMETRY, stream="telemetry", seq=number, time=now, boot_id="boot",
            monotonic_ns=number, value={"cpu_percent": 1.0},
        )
    )  # fmt: skip
    hlc = str(Timestamp(1_700_000_000_000, 0, DEVICE))
    return PushRequest(v=1, replica_id=DEVICE, epoch=1, batch_seq=number, hlc=hlc, records=list(facts))


def _idle(processes: list[psutil.Process]) -> float:
    """Milliseconds of processor time a second while a tick waits."""
    before, started = _cpu_ms(processes), time.monotonic()
    time.sleep(_IDLE_S)
    return (_cpu_ms(processes) - before) / (time.monotonic() - started)


def _tick_ms(processes: list[psutil.Process], sender: _Sender, batches: int, idle_ms_per_s: float) -> float:
    costs = []
    for _ in range(TICKS):
        before, started = _cpu_ms(processes), time.monotonic()
        sender.push(batches)
        time.sleep(_CYCLE_S)
        elapsed_s = time.monotonic() - started
        costs.append(_cpu_ms(processes) - before - idle_ms_per_s * elapsed_s)
    return statistics.median(costs)


def _cpu_ms(processes: list[psutil.Process]) -> float:
    times = [process.cpu_times() for process in processes]
    return 1000 * sum(used.user + used.system for used in times)


@contextmanager
def _dagster(folder: Path, url: str, sender: _Sender) -> Iterator[list[psutil.Process]]:
    """Code server and daemon, once a tick has recorded a first batch and the next one waits."""
    import dagster as dg

    home, socket = folder / "dagster", folder / "code.sock"
    home.mkdir()
    shutil.copy(Path(__file__).parents[1] / "dagster.yaml", home / "dagster.yaml")
    (home / "workspace.yaml").write_text(
        f"load_from:\n  - grpc_server:\n      socket: {socket}\n      location_name: {LOCATION}\n", encoding="utf-8"
    )
    environment = {
        "DAGSTER_HOME": str(home), "PRIMESPARK_HOME": str(folder), "PRIMESPARK_CLOUD__STORE__URL": url,
    }  # fmt: skip
    serve = (
        sys.executable, "-m", CODE_SERVER, "api", "grpc", "--socket", str(socket),
        "--module-name", "benchmarks.dagster_location", "--location-name", LOCATION, "--log-level", "warning",
    )  # fmt: skip
    watch = (sys.executable, "-m", "dagster._daemon", "run", "-w", str(home / "workspace.yaml"))
    with process(serve, environment, folder / "code.log") as server:
        wait(socket.exists, folder / "code.log")
        with (
            process(watch, environment, folder / "daemon.log") as daemon,
            dg.DagsterInstance.from_config(str(home)) as instance,
        ):
            sender.push(1)
            key = dg.AssetKey(["edge", "telemetry"])
            wait(lambda: instance.get_latest_materialization_event(key) is not None, folder / "daemon.log")
            time.sleep(_CYCLE_S)
            yield [psutil.Process(server.pid), psutil.Process(daemon.pid)]
