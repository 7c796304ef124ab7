"""A cloud that was restored from a real copy of its database, and devices whose cards were copied."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.engine import make_url
from typer.testing import CliRunner

from edge_agent.reading import Sweep
from primespark.cli.main import app
from primespark.core.clock import utc_now
from primespark.errors import ConflictError
from primespark.store import audit, database, devices, documents, server
from primespark.store.reconciliation import DocumentRules
from tests.integration.exchange.replicas import Edge, Exchange, Fault

EDGES = {"edge-1": 0, "edge-2": 0}


@pytest.fixture
def exchange(store_engine: Engine, tmp_path: Path) -> Iterator[Exchange]:
    exchange = Exchange(store_engine, tmp_path, DocumentRules((), ["shared"]), EDGES)
    yield exchange
    exchange.close()


class Backup:
    """A copy of the store, as a dump would be."""

    def __init__(self, postgres_server: Any, exchange: Exchange) -> None:
        exchange.engine.dispose()
        self._server = postgres_server
        self._name = str(make_url(exchange.engine.url).database)
        self.url = postgres_server._create(self._name)

    def restore(self, exchange: Exchange, *, is_told: bool = True) -> Engine:
        """Let the cloud go on from here."""
        engine = database.connect(self.url)
        if is_told:
            with engine.begin() as connection:
                server.begin_epoch(connection, utc_now(), "test")
        exchange.engine = engine
        return engine


def facts(exchange: Exchange, device_id: str) -> list[float]:
    with exchange.engine.begin() as connection:
        query = text("SELECT (value->>'number')::float FROM sync.fact WHERE device_id = :d ORDER BY epoch, seq")
        return list(connection.execute(query, {"d": device_id}).scalars())


def lost(exchange: Exchange) -> list[tuple[str, int, int, str]]:
    with exchange.engine.begin() as connection:
        rows = connection.execute(text("SELECT stream, seq_from, seq_to, reason FROM sync.lost ORDER BY device_id"))
        return [(row.stream, row.seq_from, row.seq_to, row.reason) for row in rows]


def enqueue(exchange: Exchange, edge: Edge, *numbers: int) -> None:
    for number in numbers:
        exchange.enqueue(edge, number)


@pytest.mark.parametrize("is_told", [True, False])
def test_devices_offer_a_restored_cloud_everything_and_what_is_gone_is_on_record(
    postgres_server: Any, exchange: Exchange, is_told: bool
) -> None:
    one, two = exchange.edges
    enqueue(exchange, one, 1, 2)
    exchange.change(one, "edge-1", "mine", {"a": 1, "reported": {"n": 1}})
    with exchange.engine.begin() as connection:
        documents.write_cloud(connection, "edge-1", "mine", {"desired": {"rate": 1}})
    exchange.heal()
    backup = Backup(postgres_server, exchange)
    # After the backup: acknowledged facts, documents of both sides, a deletion.
    enqueue(exchange, one, 3, 4)
    exchange.change(one, "edge-1", "mine", {"a": 2, "reported": {"n": 2}})
    exchange.change(one, "edge-1", "newer", {"b": 1})
    exchange.change(two, "fleet", "shared", {"c": 1})
    with exchange.engine.begin() as connection:
        documents.write_cloud(connection, "edge-1", "mine", {"desired": {"rate": 2}})
        documents.write_cloud(connection, "fleet", "gone", {"x": 1})
    exchange.heal()
    enqueue(exchange, one, 5)
    engine = backup.restore(exchange, is_told=is_told)
    exchange.heal()
    # What the device has is there again; what only the lost cloud had is gone at the devices too.
    assert exchange.in_cloud("edge-1", "mine").value == {"a": 2, "reported": {"n": 2}, "desired": {"rate": 1}}
    assert exchange.in_cloud("edge-1", "newer").value == {"b": 1}
    # Where nobody says so, a device finds out with its next batch.
    for edge in exchange.edges if is_told else [one]:
        for kept in exchange.run(edge.documents.page(("", ""), 100)):
            found = exchange.in_cloud(kept.scope, kept.key)
            assert (found.value, found.vv) == (kept.document.value, kept.document.vv)
    if is_told:
        assert exchange.in_cloud("fleet", "shared").value == {"c": 1}
        assert exchange.in_cloud("fleet", "gone").value == {}
    assert facts(exchange, "edge-1") == [1, 2, 5]
    assert ("telemetry", 3, 4, "cloud_restored") in lost(exchange)
    with engine.begin() as connection:
        assert audit.find_gaps(connection) == ()
        row = devices.find(connection, "edge-1")
    assert (row.epoch, row.epoch_reason) == (2, "cloud_restored")
    status = exchange.run(one.queue.status())
    assert status.epoch == 2
    assert status.cloud_restored_at is not None
    # And it goes on.
    enqueue(exchange, one, 6)
    with exchange.engine.begin() as connection:
        documents.write_cloud(connection, "edge-1", "mine", {"desired": {"rate": 3}})
    exchange.heal()
    assert facts(exchange, "edge-1") == [1, 2, 5, 6]
    shown = exchange.run(one.documents.read("edge-1", "mine"))
    assert shown is not None
    assert shown.value["desired"] == {"rate": 3}
    engine.dispose()


def test_an_epoch_after_a_restore_is_above_every_one_given_before(postgres_server: Any, exchange: Exchange) -> None:
    backup = Backup(postgres_server, exchange)
    with exchange.engine.begin() as connection:
        lost_epoch = server.begin_epoch(connection, utc_now() - timedelta(minutes=1), "the first time")
        change = documents.write_cloud(connection, "fleet", "x", {"a": 1})
        lost_log = connection.execute(text("SELECT max(log_seq) FROM sync.log")).scalar_one()
    engine = backup.restore(exchange)
    with engine.begin() as connection:
        assert server.identity(connection).server_epoch > lost_epoch
        again = documents.write_cloud(connection, "fleet", "x", {"a": 1})
        assert again.vv["cloud"] > change.vv["cloud"]
        assert connection.execute(text("SELECT max(log_seq) FROM sync.log")).scalar_one() > lost_log
    engine.dispose()


def test_the_command_begins_an_epoch_and_says_so(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    url = exchange.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", url)
    told = CliRunner().invoke(app, ["store", "restored", "--why", "disk replaced"])
    with exchange.engine.begin() as connection:
        row = connection.execute(text("SELECT server_epoch, restored_at, restored_why FROM control.server")).one()
    assert f"epoch {row.server_epoch};" in told.output
    assert row.restored_why == "disk replaced"
    assert row.restored_at is not None


def test_a_lost_reply_to_the_request_for_an_epoch_counts_nothing_twice(exchange: Exchange) -> None:
    one = exchange.edges[0]
    enqueue(exchange, one, 1, 2, 3)
    exchange.heal()
    with exchange.engine.begin() as connection:
        connection.execute(text("DELETE FROM sync.fact"))
        connection.execute(text("UPDATE sync.watermark SET seq = 1"))
    exchange.run(one.outgoing.begin_anew())
    asked = exchange.run(one.outgoing.epoch_request())
    for expected in (2, 3):
        with exchange.engine.begin() as connection:
            assert devices.begin_epoch(connection, "edge-1", asked) == expected
    assert lost(exchange) == [("telemetry", 2, 3, "cloud_restored")]


def test_a_copied_card_is_refused_and_keeps_what_waits(exchange: Exchange, tmp_path: Path) -> None:
    one = exchange.edges[0]
    enqueue(exchange, one, 1)
    exchange.heal()
    one.database.close()
    (tmp_path / "copy").mkdir()
    for part in tmp_path.glob("edge-1.db*"):
        shutil.copy(part, tmp_path / "copy" / part.name)
    original, copy = Edge(tmp_path, "edge-1"), Edge(tmp_path / "copy", "edge-1")
    exchange.edges = [original, copy, exchange.edges[1]]
    enqueue(exchange, original, 2)
    enqueue(exchange, copy, 3)
    assert exchange.push(original)
    with pytest.raises(ConflictError) as refused:
        exchange.push(copy)
    assert refused.value.code == "replica_cloned"
    assert exchange.run(copy.queue.status()).pending == 1
    assert facts(exchange, "edge-1") == [1, 2]
    # So is one that fell behind by more than the answers that are kept.
    with exchange.engine.begin() as connection:
        connection.execute(text("UPDATE sync.batch SET batch_seq = batch_seq + 1000"))
    with pytest.raises(ConflictError) as refused:
        exchange.push(copy)
    assert refused.value.code == "replica_cloned"


def test_a_device_that_reads_anew_forgets_what_the_cloud_no_longer_has(exchange: Exchange) -> None:
    one = exchange.edges[0]
    with exchange.engine.begin() as connection:
        for key in ("kept", "gone"):
            documents.write_cloud(connection, "fleet", key, {"a": 1})
    exchange.heal()
    exchange.change(one, "edge-1", "unsent", {"a": 1})
    with exchange.engine.begin() as connection:
        connection.execute(text("DELETE FROM sync.document WHERE key = 'gone'"))
    exchange.run(one.documents.read_anew(Sweep.ALL))
    while exchange.pull(one, Fault.NONE, limit=1):
        pass
    names = [kept.key for kept in exchange.run(one.documents.page(("", ""), 100))]
    assert names == ["unsent", "kept"]
