"""Whether the cloud can be reached, over real sockets: no link, a link that loses replies, and one that is back."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest
from prometheus_client import REGISTRY

from edge_agent.connectivity import ConnectivityMonitor, LinkHealth, LinkState, fault_of
from primespark.core.link_settings import ProbeSettings
from primespark.core.web.server import bind
from primespark.embedded.link import Link
from tests.integration.edge_agent.device import FAST, running_device, until
from tests.integration.edge_agent.gate import RunningGate

PROBE = ProbeSettings(interval_s=0.05, timeout_s=0.5, failures=2, successes=1)
# As in the field after hours without a link: who is not woken tries again after the test.
PATIENT = FAST.model_copy(update={"retry_base_s": 600.0, "retry_max_s": 600.0})


@contextlib.asynccontextmanager
async def watching(monitor: ConnectivityMonitor) -> AsyncIterator[ConnectivityMonitor]:
    task = asyncio.create_task(monitor.run())
    try:
        yield monitor
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_waits_is_sent_as_soon_as_a_probe_is_answered(gate: RunningGate, tmp_path: Path) -> None:
    async with Link(gate.port) as link, running_device(tmp_path, link.url, settings=PATIENT) as device:
        await device.enqueue(0)
        await device.drained()
        monitor = ConnectivityMonitor(link.url, PROBE, device.gate.link, device.engine.link_returned)
        link.cut()
        await device.enqueue(1)
        async with watching(monitor):
            await until(lambda: monitor.link.state is LinkState.NO_ANSWER)
            assert device.outgoing.waiting == 1
            link.heal()
            await device.drained()
            assert monitor.link.is_up
    assert gate.oracle.values("telemetry") == [0, 1]


def failed_pushes() -> float:
    labels = {"direction": "push", "outcome": "failed"}
    return REGISTRY.get_sample_value("primespark_sync_operations_total", labels) or 0.0


async def test_a_link_broken_one_way_is_told_from_none_and_doubles_nothing(gate: RunningGate, tmp_path: Path) -> None:
    async with Link(gate.port) as link, running_device(tmp_path, link.url, settings=PATIENT) as device:
        await device.enqueue(0)
        await device.drained()
        monitor = ConnectivityMonitor(link.url, PROBE, device.gate.link, device.engine.link_returned)
        link.hold_replies()
        failed_before = failed_pushes()
        await device.enqueue(1)
        async with watching(monitor):
            # The waiting pull fails too, sooner or later than the push.
            await until(lambda: monitor.link.state is LinkState.NO_ANSWER and failed_pushes() > failed_before)
            assert gate.oracle.values("telemetry") == [0, 1]
            assert device.outgoing.waiting == 1
            link.heal()
            await device.drained()
            assert monitor.link.is_up
        assert (await device.queue.status()).replayed_batches == 1
    assert gate.oracle.values("telemetry") == [0, 1]
    assert gate.oracle.replays == 1


async def test_a_connection_that_does_not_come_about_is_no_missing_answer() -> None:
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        # Its queue is full: who connects now hears nothing, as in a network that delivers nothing.
        stack.enter_context(socket.create_connection(listener.getsockname()))
        monitor = ConnectivityMonitor(
            f"http://127.0.0.1:{listener.getsockname()[1]}", PROBE, LinkHealth(), asyncio.Event().set
        )
        for _ in range(3):
            await monitor.probe()
            assert monitor.endpoints[0].state is LinkState.NOT_CONNECTED
    assert monitor.link.state is LinkState.NOT_CONNECTED


async def test_while_exchanges_succeed_nothing_is_asked(gate: RunningGate, tmp_path: Path) -> None:
    pulling = FAST.model_copy(update={"pull_wait_s": 0.01})
    async with running_device(tmp_path, gate.url, settings=pulling) as device:
        await device.enqueue(0)
        await device.drained()
        # Far longer than from one pull to the next, on a busy machine too.
        rare = PROBE.model_copy(update={"interval_s": 1.0})
        async with watching(ConnectivityMonitor(gate.url, rare, device.gate.link, device.engine.link_returned)):
            first = device.gate.link.last_answer_at
            assert first is not None
            await until(lambda: (device.gate.link.last_answer_at or first) > first + timedelta(seconds=2.5))
    assert gate.oracle.probes == 0


async def test_no_connection_and_no_answer_are_told_apart(gate: RunningGate) -> None:
    """A port that accepts and says nothing is what replies lost on their way look like from here."""
    silent = bind("127.0.0.1", 0)
    silent.listen()
    closed = bind("127.0.0.1", 0)
    port = closed.getsockname()[1]
    closed.close()
    for address, fault in ((silent.getsockname()[1], LinkState.NO_ANSWER), (port, LinkState.NOT_CONNECTED)):
        monitor = ConnectivityMonitor(f"http://127.0.0.1:{address}", PROBE, LinkHealth(), lambda: None)
        async with watching(monitor):
            await until(lambda monitor=monitor: monitor.link.state is not LinkState.UNKNOWN)  # type: ignore[misc]
        assert monitor.link.state is fault
    silent.close()


async def test_the_network_may_be_there_and_the_cloud_not(gate: RunningGate) -> None:
    closed = bind("127.0.0.1", 0)
    port = closed.getsockname()[1]
    closed.close()
    settings = PROBE.model_copy(update={"endpoints": (f"{gate.url}/livez", f"{gate.url}/nothing-here")})
    monitor = ConnectivityMonitor(f"http://127.0.0.1:{port}", settings, LinkHealth(), lambda: None)
    async with watching(monitor):
        await until(lambda: all(endpoint.at for endpoint in monitor.endpoints))
    assert [endpoint.state for endpoint in monitor.endpoints] == ["not_connected", "up", "no_gate"]
    assert monitor.to_json()["state"] == "not_connected"


async def test_what_answers_and_is_no_gate_does_not_count(gate: RunningGate) -> None:
    monitor = ConnectivityMonitor(f"{gate.url}/elsewhere", PROBE, LinkHealth(), lambda: pytest.fail("no gate"))
    async with watching(monitor):
        await until(lambda: monitor.link.state is LinkState.NO_GATE)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (httpx2.ConnectError("refused"), LinkState.NOT_CONNECTED),
        (httpx2.ConnectTimeout("none"), LinkState.NOT_CONNECTED),
        (httpx2.ReadTimeout("none"), LinkState.NO_ANSWER),
        (httpx2.RemoteProtocolError("closed"), LinkState.NO_ANSWER),
    ],
)
def test_each_failure_says_how_far_a_request_came(error: Exception, fault: LinkState) -> None:
    assert fault_of(error) is fault
