"""`primespark streams lag` on the embedded broker: what waits, what was read, and by whom.

On Apache Kafka it is asked about the workers of `test_workers`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from primespark.cli.main import app
from primespark.embedded.stack import broker_address, claim_home
from primespark.errors import UnavailableError
from tests.helpers import wait_until
from tests.integration.streams.stage import DEVICES, PARTITIONS, Stage, recording, singles
from tests.kafka.brokers import free_port

on_the_embedded_broker = pytest.mark.parametrize("broker", ["embedded_broker"], indirect=True)


@pytest.fixture
def at_the_stage(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("COLUMNS", "160")
    for name, value in stage.environment.items():
        monkeypatch.setenv(name, value)
    return stage


def ask() -> dict[str, Any]:
    shown = CliRunner().invoke(app, ["streams", "lag", "--json"], catch_exceptions=False)
    report: dict[str, Any] = json.loads(shown.output)
    return report


@on_the_embedded_broker
def test_what_nobody_has_read_waits_and_a_worker_makes_an_end_of_it(at_the_stage: Stage) -> None:
    stage = at_the_stage
    rows = recording(DEVICES, minutes=2)
    stage.publish(singles(rows))
    each = len(rows) // PARTITIONS
    waiting = [row for row in ask()["partitions"] if row["topic"] == stage.source]
    assert [(row["partition"], row["end_offset"], row["committed_offset"], row["lag"]) for row in waiting] == [
        (number, each, None, each) for number in range(PARTITIONS)
    ]

    worker = stage.start_ready()
    wait_until(lambda: ask()["lag"] == 0, 20, 0.2)
    report = ask()
    assert report["partitions"] == [
        {
            "topic": stage.source, "partition": number, "end_offset": each, "committed_offset": each, "lag": 0,
            "member": "primespark-streams-worker-0 at 127.0.0.1",
        }
        for number in range(PARTITIONS)
    ]  # fmt: skip
    assert report["members"] == ["primespark-streams-worker-0 at 127.0.0.1"]

    worker.stop()
    stage.publish(singles(rows))
    report = ask()
    assert report["lag"] == len(rows)
    # It knows the worker by a fixed name, under which the next one comes.
    (reader,) = report["members"]
    shown = CliRunner().invoke(app, ["streams", "lag"]).output
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert [stage.source, "0", str(2 * each), str(each), str(each), reader] in lines
    assert ["in all", "", "", "", str(len(rows)), "1 member"] in lines


@on_the_embedded_broker
def test_a_topic_that_is_not_there_is_named_and_not_made(at_the_stage: Stage) -> None:
    at_the_stage.write_rules(source_topic=f"{at_the_stage.name}.none", aggregation_function="count")
    for _ in range(2):
        report = ask()
        assert report["missing_topics"] == [f"{at_the_stage.name}.none"]
        assert not [row for row in report["partitions"] if row["topic"] in report["missing_topics"]]


def test_without_a_broker_it_says_so_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIMESPARK_HOME", str(tmp_path))
    monkeypatch.setenv("PRIMESPARK_CLOUD__KAFKA__BOOTSTRAP_SERVERS", f"127.0.0.1:{free_port()}")
    shown = CliRunner().invoke(app, ["streams", "lag"])
    assert isinstance(shown.exception, UnavailableError)
    assert (shown.exception.remedy, shown.output) == ("start the broker", "")


def test_the_broker_of_up_is_known_while_it_runs(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "broker.address").write_text("127.0.0.1:4711")
    assert broker_address(tmp_path) is None
    with claim_home(tmp_path) as claim:
        claim.truncate(0)
        claim.write("1")
        claim.flush()
        assert broker_address(tmp_path) == "127.0.0.1:4711"
