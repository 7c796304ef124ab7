"""`primespark offline` beside a running device: what its cloud refused is listed, shown, sent once more, dropped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.helpers import wait_until
from tests.integration.edge_agent.gate import TOKEN, RunningGate
from tests.integration.edge_agent.test_process import environment, running


def ask(home: Path, port: int, *command: str, group: str = "offline") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "primespark.cli.main", group, *command],
        env=environment(home, port),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_the_cloud_refuses_can_be_seen_sent_once_more_and_dropped(gate: RunningGate, tmp_path: Path) -> None:
    oracle = gate.oracle
    oracle.refuses_record = lambda record: record.get("stream") == "telemetry" and record["seq"] in (1, 2)
    cloud = {
        "PRIMESPARK_NETWORK__CLOUD_URL": gate.url,
        "PRIMESPARK_EDGE__ENROLMENT_TOKEN": TOKEN,
        "PRIMESPARK_EDGE__TELEMETRY__INTERVAL_S": "0.2",
    }
    with running(tmp_path, **cloud) as device:
        port = int(device.url.rpartition(":")[2])
        wait_until(lambda: sum(fact["stream"] == "telemetry" for fact in oracle.facts) >= 3, 60)

        items = json.loads(ask(tmp_path, port, "dead-letters", "--json").stdout)["items"]
        assert [(item["seq"], item["code"]) for item in items] == [(1, "bad_label"), (2, "bad_label")]
        again, dropped = (str(item["id"]) for item in items)
        for word in ("telemetry", "bad_label"):
            assert word in ask(tmp_path, port, "dead-letters").stdout
        shown = json.loads(ask(tmp_path, port, "show", again).stdout)

        answer = ask(tmp_path, port, "replay", again)
        assert answer.returncode == 0, answer.stderr
        assert ask(tmp_path, port, "discard", dropped).returncode == 0
        wait_until(lambda: any(_is_same(fact, shown["record"]) for fact in oracle.facts), 60)
        assert sum(_is_same(fact, shown["record"]) for fact in oracle.facts) == 1
        assert json.loads(ask(tmp_path, port, "dead-letters", "--json").stdout)["items"] == []
        assert json.loads(ask(tmp_path, port, "status", "--json").stdout)["dead_letters"] == 0
        assert "telemetry" in ask(tmp_path, port, "status").stdout

        status = json.loads(ask(tmp_path, port, "status", "--json", group="sync").stdout)
        assert status["push"]["records_per_s"] > 0
        assert status["streams"]["telemetry"]["acknowledged_seq"] > 2
        shown_to_a_person = ask(tmp_path, port, "status", group="sync").stdout
        for words in ("Synchronisation: online", "up, for", "records/s in the last minute", " s ago"):
            assert words in shown_to_a_person

        for command in ("show", "replay", "discard"):
            answer = ask(tmp_path, port, command, again)
            assert (answer.returncode, answer.stderr.splitlines()[0]) == (1, f"error: no dead letter {again}")
    answer = ask(tmp_path, port, "status")
    assert answer.returncode == 1
    assert answer.stderr.splitlines()[1] == "  try: start it: primespark edge"


def test_without_a_device_here_it_says_so(tmp_path: Path) -> None:
    answer = ask(tmp_path, 1, "status")
    assert answer.returncode == 1
    assert answer.stderr.startswith("error: no key of device edge-1 here")


def _is_same(fact: dict[str, Any], record: dict[str, Any]) -> bool:
    return all(fact[name] == record[name] for name in ("stream", "time", "monotonic_ns", "value"))
