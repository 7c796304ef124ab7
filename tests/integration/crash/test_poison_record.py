"""A record the cloud never takes, at a device that is killed meanwhile: it is set aside, and all others arrive."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2

from primespark.embedded.ports import choose_port
from tests.helpers import wait_until
from tests.integration.crash.doom import Program
from tests.integration.crash.test_agent_kills import SETTINGS
from tests.integration.edge_agent.gate import TOKEN, RunningGate, serve_gate
from tests.integration.edge_agent.test_process import environment

POISON = 7


@contextlib.contextmanager
def agent(home: Path, gate: RunningGate) -> Iterator[httpx2.Client]:
    """The device's process, and its API; killed in the end."""
    port = choose_port(0, set())
    variables = environment(home, port, **SETTINGS, PRIMESPARK_NETWORK__CLOUD_URL=gate.url)
    program = Program("edge", variables, home / "edge.log")
    key_file = home / "edge" / "edge-1" / "local.key"

    def is_ready() -> bool:
        with contextlib.suppress(httpx2.HTTPError, OSError):
            return httpx2.get(f"http://127.0.0.1:{port}/readyz", timeout=2).is_success
        return False

    try:
        program.wait_until(is_ready)
        headers = {"Authorization": f"Bearer {key_file.read_text()}"}
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=10) as client:
            yield client
    finally:
        program.kill()


def letters(client: httpx2.Client) -> list[dict[str, Any]]:
    """What the device has set aside."""
    items: list[dict[str, Any]] = client.get("/api/v1/offline/dead-letters").raise_for_status().json()["items"]
    return items


def test_it_is_set_aside_and_the_others_flow(tmp_path: Path) -> None:
    folder = tmp_path / "edge" / "edge-1"
    folder.mkdir(parents=True)
    (folder / "enrolment.token").write_text(TOKEN)
    with serve_gate() as gate:
        oracle = gate.oracle
        refused = 0

        def refuses(record: dict[str, Any]) -> bool:
            nonlocal refused
            is_poison = record["op"] == "append" and (record["stream"], record["seq"]) == ("telemetry", POISON)
            refused += is_poison
            return is_poison

        oracle.refuses_batch = refuses
        with agent(tmp_path, gate):
            # Killed while it looks for the record that is why.
            wait_until(lambda: refused >= 2, 30)
        with agent(tmp_path, gate) as client:
            wait_until(lambda: len(oracle.facts) > 60, 30)
            (letter,) = letters(client)
            assert (letter["stream"], letter["seq"], letter["code"]) == ("telemetry", POISON, "invalid_input")
            oracle.refuses_batch = lambda _: False
            seq = client.post(f"/api/v1/offline/dead-letters/{letter['id']}/replay").raise_for_status().json()["seq"]
            wait_until(lambda: any(fact["seq"] == seq for fact in oracle.facts), 30)
            assert letters(client) == []
    lost = [(lost["stream"], lost["seq_from"], lost["seq_to"]) for lost in oracle.lost]
    assert lost == [("telemetry", POISON, POISON)]
    seqs = [fact["seq"] for fact in oracle.facts if fact["stream"] == "telemetry"]
    assert seqs == [number for number in range(1, len(seqs) + 2) if number != POISON]
