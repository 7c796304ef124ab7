"""`primespark streams --workers N`: the processes it keeps, what they share, and how all of them end; `lag` of them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial

import psutil
import pytest
from typer.testing import CliRunner

from primespark.cli.main import app
from primespark.errors import ConfigurationError, PrimeSparkError, UnavailableError
from tests.helpers import rounds, wait_until
from tests.integration.streams.stage import DEVICES, Stage, Worker, averages, equals, recording, singles

on_apache_kafka = pytest.mark.parametrize("broker", ["apache_kafka"], indirect=True)


def page_of(worker: Worker, index: int) -> Worker:
    """The worker of this number in the group that `worker` started."""
    return Worker(worker.process, worker.port + index, worker.log)


def children(worker: Worker) -> set[int]:
    return {child.pid for child in psutil.Process(worker.process.pid).children()}


def listening(processes: set[int]) -> set[int]:
    """The ports that somebody may connect to."""
    sockets = [socket for process in processes for socket in psutil.Process(process).net_connections("tcp")]
    return {socket.laddr.port for socket in sockets if socket.status == psutil.CONN_LISTEN}


def assignments(worker: Worker) -> list[int]:
    """How many partitions each member of the group got last."""
    last = {}
    for line in worker.log.read_text().splitlines():
        if "partitions_assigned" in line:
            found = dict(re.findall(r'"(partitions|worker)": "?([\w-]+)', line))
            last[found["worker"]] = int(found["partitions"])
    return sorted(last.values())


@pytest.fixture
def surroundings(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)


def lag(*arguments: str) -> str:
    return CliRunner().invoke(app, ["streams", "lag", *arguments], catch_exceptions=False).output


def readers(topic: str) -> list[tuple[int, int | None, str | None]]:
    """Lag, committed offset and member of each partition; the group may have read other tests' topics before."""
    rows = [row for row in json.loads(lag("--json"))["partitions"] if row["topic"] == topic]
    return [(row["lag"], row["committed_offset"], row["member"]) for row in rows]


@pytest.mark.prove
@pytest.mark.usefixtures("surroundings")
@on_apache_kafka
def test_workers_share_the_partitions_and_one_that_is_killed_comes_back(stage: Stage) -> None:
    assert readers(stage.source) == [(0, None, None)] * 3
    rows = recording(DEVICES, minutes=60)
    half = len(rows) // 2
    pool = stage.start("pool", "--workers", "2", ports=2)
    pages = [page_of(pool, index) for index in range(2)]
    wait_until(lambda: all(page.is_ready for page in pages), 40)
    wait_until(lambda: assignments(pool) == [1, 2], 20)
    stage.publish(singles(rows[:half]))
    wait_until(lambda: stage.counted() > half // 2, 20)
    for _ in range(rounds(0, 3)):
        before = children(pool)
        victim = min(before)
        os.kill(victim, signal.SIGKILL)
        wait_until(partial(_has_replaced, pool, victim, len(before)), 10)
        wait_until(lambda: all(page.is_ready for page in pages), 40)
    stage.publish(singles(rows[half:]))
    wait_until(lambda: equals(stage, averages(rows)), 40)
    each = len(rows) // 3
    wait_until(lambda: [row[:2] for row in readers(stage.source)] == [(0, each)] * 3, 10)
    names = Counter(member for _lag, _offset, member in readers(stage.source))
    assert set(names) == {f"primespark-streams-pool-{index} at 127.0.0.1" for index in range(2)}
    assert sorted(names.values()) == [1, 2]
    processes = children(pool)
    assert len(processes) == 2
    # Faust has pages of its own, which would show tables and agents.
    assert listening({pool.process.pid, *processes}) == {page.port for page in pages}
    status, took_s = pool.stop()
    assert (status, took_s < 6) == (0, True)
    assert not any(map(psutil.pid_exists, processes))
    said = [json.loads(line) for line in pool.log.read_text().splitlines()]
    assert {line["worker"] for line in said if line["event"] == "worker_state"} == {"pool-0", "pool-1"}
    assert readers(stage.source) == [(0, each, None)] * 3
    assert "try: primespark streams" in lag()


def _has_replaced(pool: Worker, victim: int, count: int) -> bool:
    now = children(pool)
    return victim not in now and len(now) == count


@pytest.fixture
def refusal(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PrimeSparkError]:
    """Tries two workers on the stage with other settings; why it was refused, without a worker having been started."""

    def refuse(**settings: str) -> PrimeSparkError:
        for name, value in {**stage.environment, **settings}.items():
            monkeypatch.setenv(name, value)
        shown = CliRunner().invoke(app, ["streams", "--workers", "2"])
        assert isinstance(shown.exception, PrimeSparkError)
        assert not [child for child in psutil.Process().children() if "streams" in child.cmdline()]
        return shown.exception

    return refuse


@on_apache_kafka
def test_what_no_worker_could_work_with_is_told_at_once(refusal: Callable[..., PrimeSparkError], stage: Stage) -> None:
    error = refusal(PRIMESPARK_CLOUD__KAFKA__EMBEDDED="true")
    assert (type(error), "has room for one worker" in error.message) == (ConfigurationError, True)
    error = refusal(PRIMESPARK_CLOUD__STREAMS__PORT="65535")
    assert (type(error), "from port 65535" in error.message) == (ConfigurationError, True)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        error = refusal(PRIMESPARK_CLOUD__STREAMS__PORT=str(port - 1))
        assert (type(error), "it is in use" in error.message) == (UnavailableError, True)
    error = refusal(PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS="127.0.0.1:9")
    assert (type(error), "no Kafka at" in error.message) == (UnavailableError, True)
    stage.write_rules(aggregation_function="count", enabled=False)
    assert "no rule is enabled" in refusal().message
    stage.write_rules(aggregation_function="median")
    assert "'median' is not available" in refusal().message
