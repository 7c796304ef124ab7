"""The supervisor with real processes: readiness, order, deaths, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from primespark.embedded import supervisor as module
from primespark.embedded.supervisor import Service, State, Supervisor
from primespark.errors import UnavailableError
from tests.helpers import wait_until
from tests.integration.embedded.programs import Gate, are_gone, listener
from tests.kafka.brokers import free_port

Changes = list[tuple[str, State]]


@pytest.fixture
def changes() -> Changes:
    return []


@pytest.fixture
async def supervisor(tmp_path: Path, changes: Changes) -> AsyncIterator[Supervisor]:
    supervisor = Supervisor(tmp_path / "logs", lambda name, state: changes.append((name, state)))
    yield supervisor
    await supervisor.stop()


async def until(condition: Callable[[], object], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (the state of processes, which set no event)
            await asyncio.sleep(0.01)


async def test_a_service_is_ready_when_it_answers_and_not_when_it_runs(
    supervisor: Supervisor, tmp_path: Path, changes: Changes
) -> None:
    gate = Gate(tmp_path / "gate")
    gate.close()
    supervisor.launch([listener(tmp_path, "one", free_port(), gate=gate)])
    await until(lambda: (("one", State.STARTING)) in changes)
    for _ in range(5):
        await asyncio.sleep(module._PROBE_INTERVAL_S)  # the time of some probes, after any of which it could be wrong
    assert supervisor.states() == {"one": State.STARTING}
    gate.open()
    await supervisor.wait_ready()
    assert supervisor.states() == {"one": State.READY}


async def test_what_is_needed_is_ready_first_and_prepared_once(
    supervisor: Supervisor, tmp_path: Path, changes: Changes
) -> None:
    seen: list[str] = []

    async def after_ready() -> None:
        seen.append("store is prepared")
        assert "user" not in supervisor.process_ids()

    base = listener(tmp_path, "base", free_port())
    base = Service(name="base", command=base.command, is_ready=base.is_ready, after_ready=after_ready)
    await supervisor.start([listener(tmp_path, "user", free_port(), needs=("base",)), base])
    assert [change for change in changes if change[1] is State.READY] == [("base", State.READY), ("user", State.READY)]
    os.kill(supervisor.process_ids()["base"], signal.SIGKILL)
    await until(lambda: changes.count(("base", State.READY)) == 2)
    assert seen == ["store is prepared"]


async def test_a_killed_child_is_started_again(supervisor: Supervisor, tmp_path: Path, changes: Changes) -> None:
    await supervisor.start([listener(tmp_path, "one", free_port())])
    for number in (2, 3):
        before = supervisor.process_ids()["one"]
        os.kill(before, signal.SIGKILL)
        await until(lambda times=number: changes.count(("one", State.READY)) == times)  # type: ignore[misc]
        assert supervisor.process_ids()["one"] != before
    assert changes.count(("one", State.RESTARTING)) == 2


async def test_a_killed_child_takes_its_own_children_along(supervisor: Supervisor, tmp_path: Path) -> None:
    left = tmp_path / "grandchild"
    await supervisor.start([listener(tmp_path, "one", free_port(), grandchild=left)])
    grandchild = int(left.read_text())
    os.kill(supervisor.process_ids()["one"], signal.SIGKILL)
    await until(lambda: are_gone([grandchild]))


async def test_a_stop_ends_first_what_nobody_needs(tmp_path: Path, changes: Changes) -> None:
    supervisor = Supervisor(tmp_path / "logs", lambda name, state: changes.append((name, state)))
    left = tmp_path / "grandchild"
    services = [
        listener(tmp_path, "base", free_port(), grandchild=left),
        listener(tmp_path, "middle", free_port(), needs=("base",)),
        listener(tmp_path, "top", free_port(), needs=("middle", "base")),
    ]
    await supervisor.start(services)
    running = [*supervisor.process_ids().values(), int(left.read_text())]
    await supervisor.stop()
    assert (tmp_path / "journal").read_text().split() == ["top", "middle", "base"]
    assert set(supervisor.states().values()) == {State.STOPPED}
    await until(lambda: are_gone(running), 2)


async def test_a_child_that_does_not_listen_to_a_stop_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STOP_TIMEOUT_S", 0.3)
    supervisor = Supervisor(tmp_path / "logs")
    await supervisor.start([listener(tmp_path, "deaf", free_port(), ignores_sigterm=True)])
    running = supervisor.process_ids().values()
    await supervisor.stop()
    await until(lambda: are_gone(running), 2)


async def test_a_stop_while_something_starts_leaves_nothing(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path / "logs")
    never = Gate(tmp_path / "never")
    never.close()
    services = [
        listener(tmp_path, "base", free_port(), gate=never),
        listener(tmp_path, "user", free_port(), needs=("base",)),
    ]
    supervisor.launch(services)
    await until(lambda: "base" in supervisor.process_ids())
    running = list(supervisor.process_ids().values())
    await asyncio.wait_for(supervisor.stop(), 5)
    await until(lambda: are_gone(running), 2)


async def test_a_program_that_ends_before_it_is_ready_is_given_up_with_its_last_words(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    async def is_ready() -> bool:
        return False

    command = (sys.executable, "-S", "-c", "import sys; print('the disk is full', file=sys.stderr); sys.exit(3)")
    with pytest.raises(UnavailableError) as refused:
        await supervisor.start([Service(name="broken", command=command, is_ready=is_ready)])
    assert "broken ended 3 times before it was ready" in refused.value.message
    assert "the disk is full" in refused.value.message
    assert str(tmp_path / "logs" / "broken.log") in refused.value.remedy
    assert supervisor.states() == {"broken": State.FAILED}


async def test_a_failure_reaches_those_who_need_it(supervisor: Supervisor, tmp_path: Path) -> None:
    async def is_ready() -> bool:
        return False

    broken = Service(name="base", command=("/no/such/program",), is_ready=is_ready)
    user = listener(tmp_path, "user", free_port(), needs=("base",))
    with pytest.raises(UnavailableError, match="base did not start"):
        await supervisor.start([user, broken])
    assert "user" not in supervisor.process_ids()


async def test_a_program_that_is_never_ready_is_given_up_and_ended(supervisor: Supervisor, tmp_path: Path) -> None:
    never = Gate(tmp_path / "never")
    never.close()
    slow = listener(tmp_path, "slow", free_port(), gate=never, start_timeout_s=0.5)
    with pytest.raises(UnavailableError, match="slow was not ready after"):
        await supervisor.start([slow])
    await until(lambda: are_gone(supervisor.process_ids().values()))


async def test_a_port_in_use_is_named(supervisor: Supervisor, tmp_path: Path) -> None:
    async def is_ready() -> bool:
        return False  # the one who listens there is not ours

    with socket.create_server(("127.0.0.1", 0)) as holder:
        service = listener(tmp_path, "one", holder.getsockname()[1])
        with pytest.raises(UnavailableError, match="Address already in use"):
            await supervisor.start([Service(name="one", command=service.command, is_ready=is_ready)])


async def test_secrets_in_the_environment_reach_the_child_and_bytecode_is_allowed(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    out = tmp_path / "environment"
    program = f"import os; open({str(out)!r}, 'w').write(repr(dict(os.environ))); import signal; signal.pause()"

    async def is_ready() -> bool:
        return out.exists() and out.read_text().endswith("}")

    command = (sys.executable, "-S", "-c", program)
    await supervisor.start([Service(name="one", command=command, is_ready=is_ready, environment={"X_KEY": "k"})])
    assert "'X_KEY': 'k'" in out.read_text()
    assert "PYTHONDONTWRITEBYTECODE" not in out.read_text()


_SUPERVISED = """
import asyncio, sys
from pathlib import Path
from primespark.embedded.supervisor import Supervisor
from tests.integration.embedded.programs import listener
async def main(folder, first, second):
    supervisor = Supervisor(folder / "logs")
    await supervisor.start([
        listener(folder, "base", first), listener(folder, "user", second, needs=("base",)),
    ])
    print(*supervisor.process_ids().values(), flush=True)
    await asyncio.Event().wait()
asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_no_child_outlives_a_supervisor_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _SUPERVISED, str(tmp_path), str(free_port()), str(free_port())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    children = [int(word) for word in process.stdout.readline().split()]
    assert len(children) == 2
    assert not are_gone(children)
    process.kill()
    process.wait()
    process.stdout.close()
    wait_until(lambda: are_gone(children), 5)


async def test_what_was_ready_once_is_never_given_up(
    supervisor: Supervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Changes
) -> None:
    gate = Gate(tmp_path / "gate")
    service = listener(tmp_path, "one", free_port(), gate=gate, start_timeout_s=3)
    await supervisor.start([service])
    gate.close()
    os.kill(supervisor.process_ids()["one"], signal.SIGKILL)
    # Once it is not ready in time; then what it waited for is there.
    await until(lambda: changes.count(("one", State.RESTARTING)) >= 2, 20)
    gate.open()
    await until(lambda: changes[-1] == ("one", State.READY), 20)


async def test_whatever_goes_wrong_before_a_start_is_told(supervisor: Supervisor, tmp_path: Path) -> None:
    async def prepare() -> None:
        raise ValueError("something nobody thought of")

    service = dataclasses.replace(listener(tmp_path, "one", free_port()), prepare=prepare)
    with pytest.raises(UnavailableError, match="one did not start: ValueError: something nobody thought of"):
        await supervisor.start([service, listener(tmp_path, "user", free_port(), needs=("one",))])
