"""A device against a gate over real HTTP: every acknowledged fact arrives exactly once, whatever happens between."""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent import exchange
from edge_agent.database import Database
from edge_agent.exchange import Phase
from primespark.core.settings import OfflineSettings
from primespark.embedded.link import Link
from primespark.errors import OverloadedError
from tests.helpers import rounds
from tests.integration.edge_agent.device import FAST, Device, running_device, until
from tests.integration.edge_agent.gate import HLC, TOKEN, GateOracle, RunningGate

PUSH = b"POST /sync/v1/push"
# As in the field: who waits a refusal out waits longer than any test does.
SLOW = FAST.model_copy(update={"retry_max_s": 60.0})


async def test_facts_arrive_in_order_once(gate: RunningGate, tmp_path: Path) -> None:
    async with running_device(tmp_path, gate.url) as device:
        assert await device.enqueue(*range(50)) == list(range(1, 51))
        assert await device.enqueue(0, stream="other") == [1]
        await device.drained()
        status = await device.queue.status()
    assert gate.oracle.values("telemetry") == list(range(50))
    assert gate.oracle.values("other") == [0]
    telemetry = status.streams["telemetry"]
    assert (telemetry.last_seq, telemetry.acknowledged_seq, telemetry.lost, telemetry.pending) == (50, 50, 0, 0)
    assert (status.pending, status.bytes, status.epoch) == (0, 0, 1)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("enqueue"), st.integers(1, 45)),
        st.tuples(st.just("refuse"), st.sampled_from([(503, "unavailable"), (429, "overloaded"), (400, "bad_digest")])),
        st.just(("lose_reply",)),
        st.just(("outage",)),
        st.just(("restart",)),
        st.just(("lose_database",)),
    ),
    min_size=3,
    max_size=12,
)


@pytest.mark.prove
@settings(max_examples=rounds(15, 300))
@given(steps=STEPS)
def test_every_acknowledged_fact_arrives_exactly_once(served_gate: RunningGate, steps: list[Any]) -> None:
    """The law, over histories of refusals, lost replies, outages, restarts and lost databases."""
    served_gate.oracle = GateOracle()
    with tempfile.TemporaryDirectory() as folder:
        expected = asyncio.run(_live_through(served_gate, Path(folder) / "device", steps))
    assert sorted(served_gate.oracle.values("telemetry")) == list(range(expected))
    by_epoch: dict[int, list[int]] = {}
    for fact in served_gate.oracle.facts:
        by_epoch.setdefault(fact["epoch"], []).append(fact["seq"])
    assert all(seqs == list(range(1, len(seqs) + 1)) for seqs in by_epoch.values())


async def _live_through(gate: RunningGate, folder: Path, steps: list[Any]) -> int:
    """Run a history to its end, with all sent; how many facts were acknowledged by the queue."""
    number, remaining = 0, [*steps, ("end",)]
    async with Link(gate.port) as link:
        while remaining:
            async with running_device(folder, link.url) as device:
                while (step := remaining.pop(0))[0] not in ("restart", "lose_database", "end"):
                    if step[0] == "enqueue":
                        await device.enqueue(*range(number, number + step[1]))
                        number += step[1]
                    elif step[0] == "refuse":
                        gate.oracle.faults.append(step[1])
                    elif step[0] == "lose_reply":
                        link.lose_next_reply(PUSH)
                    else:
                        link.cut()
                        await asyncio.sleep(0)  # what the cut woke goes one step before it is healed
                        link.heal()
                if step[0] != "restart":
                    await device.drained()
            if step[0] == "lose_database":
                remove_database(folder)
    return number


def remove_database(folder: Path) -> None:
    """As by a card that went bad."""
    for file in folder.glob("queue.db*"):
        file.unlink()


async def test_a_lost_reply_is_answered_again_and_counted(gate: RunningGate, tmp_path: Path) -> None:
    async with Link(gate.port) as link, running_device(tmp_path, link.url) as device:
        await device.enqueue(0)
        await device.drained()
        link.lose_next_reply(PUSH)
        await device.enqueue(1)
        await device.drained()
        assert (await device.queue.status()).replayed_batches == 1
    assert link.counts.replies_lost == 1
    assert gate.oracle.replays == 1
    assert gate.oracle.values("telemetry") == [0, 1]


async def test_a_batch_is_sent_again_with_the_same_bytes_after_a_restart(gate: RunningGate, tmp_path: Path) -> None:
    gate.oracle.faults.extend([(503, "unavailable")] * 10_000)
    async with running_device(tmp_path, gate.url) as device:
        await device.enqueue(0, 1)
        await until(lambda: gate.oracle.requests > 0)
        first = await device.outgoing.next_batch()
        await device.enqueue(2)
    gate.oracle.faults.clear()
    async with running_device(tmp_path, gate.url) as device:
        second = await device.outgoing.next_batch()
        assert first is not None
        assert second is None or second == first or second.batch_seq > first.batch_seq
        await device.drained()
    assert gate.oracle.values("telemetry") == [0, 1, 2]
    assert [seq for _, _, seq in gate.oracle.answers] == [1, 2]


async def test_a_cloud_without_the_dictionary_gets_batches_without_it(gate: RunningGate, tmp_path: Path) -> None:
    async with running_device(tmp_path, gate.url) as device:
        await device.drained()
        gate.oracle.faults.append((415, "unknown_dictionary"))
        await device.enqueue(*range(20))
        await device.drained()
        assert (await device.queue.status()).dead_letters == 0
    assert gate.oracle.values("telemetry") == list(range(20))
    assert gate.oracle.dictionaries[-2:] == [1, 0]


async def test_a_record_that_spoils_its_batch_goes_alone_to_the_dead_letters(gate: RunningGate, tmp_path: Path) -> None:
    gate.oracle.refuses_batch = lambda record: record["op"] == "append" and record["value"]["n"] == 7
    async with running_device(tmp_path, gate.url) as device:
        await device.enqueue(*range(30))
        await device.drained()
        status = await device.queue.status()
    assert gate.oracle.values("telemetry") == [n for n in range(30) if n != 7]
    assert [(lost["seq_from"], lost["seq_to"], lost["reason"]) for lost in gate.oracle.lost] == [
        (8, 8, "refused: invalid_input")
    ]
    assert (status.dead_letters, status.streams["telemetry"].lost) == (1, 1)
    assert status.streams["telemetry"].acknowledged_seq == 30


async def test_a_refused_record_is_kept_aside_and_the_others_go_on(gate: RunningGate, tmp_path: Path) -> None:
    gate.oracle.refuses_record = lambda record: record["value"]["n"] in (3, 4)
    async with running_device(tmp_path, gate.url) as device:
        await device.enqueue(*range(6))
        await device.drained()
        rows = await device.database.run(
            lambda connection: connection.execute("SELECT seq, code, record FROM dead_letter ORDER BY id").fetchall()
        )
    assert gate.oracle.values("telemetry") == [0, 1, 2, 5]
    assert [(seq, code) for seq, code, _ in rows] == [(4, "bad_label"), (5, "bad_label")]
    assert '"n":3' in rows[0][2]


@pytest.mark.parametrize("answer", [(401, "unauthenticated"), (403, "wrong_device"), (409, "replica_cloned")])
async def test_a_refusal_is_told_and_loses_nothing(gate: RunningGate, tmp_path: Path, answer: tuple[int, str]) -> None:
    async with running_device(tmp_path, gate.url, token="another-token-of-16") as device:
        await until(lambda: device.engine.state.phase is Phase.REFUSED)
        assert device.engine.state.code == "bad_token"
    async with running_device(tmp_path, gate.url) as device:
        await until(lambda: device.engine.state.phase is Phase.ONLINE)
        gate.oracle.faults.append(answer)
        await device.enqueue(1, 2)
        await device.drained()
        await until(lambda: device.engine.state.phase is Phase.ONLINE)
    assert gate.oracle.values("telemetry") == [1, 2]


async def test_a_forgotten_device_enrols_again_with_a_new_token(gate: RunningGate, tmp_path: Path) -> None:
    async with running_device(tmp_path, gate.url) as device:
        await device.enqueue(0)
        await device.drained()
        gate.oracle.keys.clear()
        await device.enqueue(1, 2)
        await until(lambda: device.engine.state.phase is Phase.REFUSED)
        assert device.engine.state.code == "unauthenticated"
    gate.oracle.tokens = {"a-second-token-of-16"}
    async with running_device(tmp_path, gate.url, token="a-second-token-of-16") as device:
        await device.drained()
        status = await device.queue.status()
    assert gate.oracle.values("telemetry") == [0, 1, 2]
    assert [(fact["epoch"], fact["seq"]) for fact in gate.oracle.facts] == [(1, 1), (2, 1), (2, 2)]
    assert (status.epoch, status.streams["telemetry"].acknowledged_seq) == (2, 2)


async def test_a_kill_before_the_key_is_kept_makes_it_enrol_again(gate: RunningGate, tmp_path: Path) -> None:
    async with running_device(tmp_path, gate.url) as device:
        await until(lambda: device.engine.state.phase is Phase.ONLINE)
    (tmp_path / "device.key").unlink()
    async with running_device(tmp_path, gate.url) as device:
        await device.enqueue(0)
        await device.drained()
    assert [fact["epoch"] for fact in gate.oracle.facts] == [2]


async def test_a_damaged_database_is_set_aside_and_a_new_epoch_begins(gate: RunningGate, tmp_path: Path) -> None:
    async with running_device(tmp_path, gate.url) as device:
        await device.enqueue(0)
        await device.drained()
    (tmp_path / "queue.db").write_bytes(b"rust" * 5000)
    async with running_device(tmp_path, gate.url) as device:
        await device.enqueue(1)
        await device.drained()
        assert (await device.queue.status()).epoch == 2
    assert len(set_aside(tmp_path)) == 1
    assert gate.oracle.values("telemetry") == [0, 1]


def set_aside(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if file.name.startswith("queue.db.corrupt-")]


async def test_a_full_queue_refuses_and_loses_nothing(gate: RunningGate, tmp_path: Path) -> None:
    limits = OfflineSettings(capacity_operations=25)
    async with Link(gate.port) as link:
        link.cut()
        async with running_device(tmp_path, link.url, limits=limits) as device:
            await device.enqueue(*range(20))
            with pytest.raises(OverloadedError) as refused:
                await device.enqueue(*range(20, 30))
            assert refused.value.code == "queue_full"
            await device.enqueue(*range(20, 25))
            link.heal()
            await device.drained()
            await device.enqueue(25)
            await device.drained()
    assert gate.oracle.values("telemetry") == list(range(26))


@pytest.mark.parametrize("head", ["200 OK", "503 Busy\r\nRetry-After: \xb2"])
async def test_what_is_no_gate_is_waited_for(tmp_path: Path, gate: RunningGate, head: str) -> None:
    async def portal(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        headers = f"HTTP/1.1 {head}\r\nContent-Length: 13\r\nConnection: close\r\n\r\n"
        writer.write(headers.encode("latin-1") + b"<html></html>")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(portal, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with running_device(tmp_path, f"http://127.0.0.1:{port}") as device:
        await until(lambda: device.engine.state.phase is Phase.OFFLINE)
        assert device.engine.state.code == "no_gate"
        await device.enqueue(1)
    server.close()
    async with running_device(tmp_path, gate.url) as device:
        await device.drained()
    assert gate.oracle.values("telemetry") == [1]


def put_document(oracle: GateOracle, key: str, value: dict[str, Any]) -> None:
    """As the cloud writes it."""
    change = {"data_class": "configurations", "scope": "edge-1", "key": key, "op": "put", "vv": {"cloud": 1}}
    leaf_hlc = {f"/{name}": HLC for name in value}
    oracle.put_document("edge-1", key, {**change, "hlc": HLC, "leaf_hlc": leaf_hlc, "value": value})


@pytest.mark.parametrize("wrong", ["short", "x" * 300, "a-token-nobody-has-made"])
async def test_a_wrong_token_is_told_and_a_corrected_one_is_taken_at_once(
    gate: RunningGate, tmp_path: Path, wrong: str
) -> None:
    token_file = tmp_path / "enrolment.token"
    token_file.write_text(wrong)
    async with running_device(tmp_path, gate.url, settings=SLOW, token="") as device:
        await until(lambda: device.engine.state.phase is Phase.REFUSED)
        assert device.engine.state.code == "bad_token"
        assert wrong not in repr(device.engine.state)
        token_file.write_text(TOKEN)
        await device.enqueue(0)
        await device.drained()
    assert gate.oracle.values("telemetry") == [0]


async def test_a_forgotten_device_reads_everything_of_the_cloud_that_knows_it_again(
    gate: RunningGate, tmp_path: Path
) -> None:
    for number in range(3):
        put_document(gate.oracle, f"old-{number}", {"n": number})
    async with running_device(tmp_path, gate.url, settings=SLOW) as device:
        await until(lambda: device.engine.state.phase is Phase.ONLINE)
        await has_document(device, "old-2")
        oracle = GateOracle()
        oracle.tokens = {"a-second-token-of-16"}
        put_document(oracle, "new", {"n": 1})
        gate.oracle = oracle
        await device.enqueue(0)
        await until(lambda: device.engine.state.code == "unauthenticated")
        (tmp_path / "enrolment.token").write_text("a-second-token-of-16")
        await device.drained()
        await has_document(device, "new")


async def has_document(device: Device, key: str) -> None:
    """Wait until the device has it."""
    async with asyncio.timeout(10):
        while await device.documents.read("edge-1", key) is None:  # noqa: ASYNC110 (a database on another thread)
            await asyncio.sleep(0.002)


async def test_a_cloud_that_asks_for_it_is_read_from_its_beginning(gate: RunningGate, tmp_path: Path) -> None:
    for number in range(3):
        put_document(gate.oracle, f"old-{number}", {"n": number})
    async with running_device(tmp_path, gate.url) as device:
        await has_document(device, "old-2")
        # As a database restored from a copy.
        gate.oracle.log.clear()
        put_document(gate.oracle, "new", {"n": 1})
        gate.oracle.pull_faults.append((410, "must_resync"))
        await has_document(device, "new")


@pytest.mark.parametrize("code", ["bad_digest", "truncated_body"])
async def test_a_batch_damaged_on_the_way_is_sent_again_whole(gate: RunningGate, tmp_path: Path, code: str) -> None:
    gate.oracle.faults.append((400, code))
    async with running_device(tmp_path, gate.url) as device:
        await device.enqueue(0, 1, 2)
        await device.drained()
        assert (await device.queue.status()).dead_letters == 0
    assert (gate.oracle.requests, gate.oracle.batches, gate.oracle.lost) == (2, 1, [])
    assert gate.oracle.values("telemetry") == [0, 1, 2]


async def test_a_refused_lost_range_is_kept_and_not_sent_for_ever(gate: RunningGate, tmp_path: Path) -> None:
    gate.oracle.refuses_batch = lambda record: record["op"] == "lost" or record["value"]["n"] == 1
    async with running_device(tmp_path, gate.url, settings=SLOW) as device:
        await device.enqueue(0, 1, 2)
        await until(lambda: device.engine.state.phase is Phase.REFUSED)
        assert device.engine.state.code == "invalid_input"
        assert (await device.queue.status()).dead_letters == 1
        gate.oracle.refuses_batch = lambda _: False
        device.engine.synchronise_now()
        await device.drained()
    assert [(lost["seq_from"], lost["seq_to"]) for lost in gate.oracle.lost] == [(2, 2)]
    assert gate.oracle.values("telemetry") == [0, 2]


async def test_no_unexpected_error_ends_a_loop(gate: RunningGate, tmp_path: Path) -> None:
    def damage(connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT INTO document (scope, key, value, vv, leaf_hlc, dirty) VALUES ('edge-1', 'twin', '{', '{', '{', 1)"
        )

    def mend(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM document")

    database = Database(tmp_path / "queue.db")
    database.submit(damage)
    database.close()
    async with running_device(tmp_path, gate.url) as device:
        # Enrolment and the deployer meet it first, then the two directions.
        await until(lambda: device.engine.state.code == "internal")
        await device.database.run(mend)
        await until(lambda: device.engine.state.phase is Phase.ONLINE)
        await device.database.run(damage)
        await device.enqueue(0)
        put_document(gate.oracle, "twin", {"n": 1})
        await until(lambda: device.engine.state.code == "internal")
        await device.database.run(mend)
        await device.drained()
        await has_document(device, "twin")
    assert gate.oracle.values("telemetry") == [0]


async def test_what_is_low_waits_for_its_window_and_all_else_goes(
    gate: RunningGate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "LOOK_AGAIN_S", 0.05)
    is_open = False
    async with running_device(tmp_path, gate.url, may_send_low=lambda: is_open) as device:
        for number in range(30):
            await device.enqueue(number)
            await device.enqueue(number, stream="results")
        await device.documents.patch("site", {"a": 1})
        await until(lambda: len(gate.oracle.values("results")) == 30 and gate.oracle.documents)
        await device.drained()
        requests = gate.oracle.requests
        await until(lambda: device.outgoing.waiting == 0)
        assert gate.oracle.values("telemetry") == []
        assert (await device.queue.status()).pending == 30
        is_open = True
        # Nothing is enqueued that would wake the device: it looks by itself.
        await until(lambda: len(gate.oracle.values("telemetry")) == 30)
        is_open = False
        assert gate.oracle.requests - requests <= 4
        await device.enqueue(30)
        await device.enqueue(30, stream="results")
        await until(lambda: gate.oracle.values("results")[-1] == 30)
    assert gate.oracle.values("telemetry") == list(range(30))
