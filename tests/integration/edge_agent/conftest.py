"""One gate for the module's tests, its account fresh for each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.edge_agent.gate import GateOracle, RunningGate, serve_gate


@pytest.fixture(scope="module")
def served_gate() -> Iterator[RunningGate]:
    with serve_gate() as gate:
        yield gate


@pytest.fixture
def gate(served_gate: RunningGate) -> RunningGate:
    served_gate.oracle = GateOracle()
    return served_gate
