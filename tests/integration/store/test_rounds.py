"""A round of the cloud's side: what it folds, marks, wakes and removes; and that a killed one has not happened."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from primespark.core.clock import utc_now
from primespark.errors import GoneError
from primespark.store import database, devices, documents, rounds, sync_log, tombstones
from tests.integration.store.builders import batch, enrol, fact, lost, push

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
RULES = rounds.Rules(overdue_after=15 * MINUTE, tombstone_age=30 * DAY, inactive_after=30 * DAY)


@pytest.fixture
def engine(store_engine: Engine) -> Engine:
    with store_engine.begin() as connection:
        enrol(connection, "edge-1")
        enrol(connection, "edge-2")
    return store_engine


def close(engine: Engine, now: datetime | None = None, rules: rounds.Rules = RULES) -> rounds.Round:
    with engine.begin() as connection:
        return rounds.close_round(connection, now or utc_now(), rules)


def run(engine: Engine, statement: str, **values: Any) -> list[Any]:
    with engine.begin() as connection:
        found = connection.execute(text(statement), values)
        return [tuple(row) for row in found] if found.returns_rows else []


def write(engine: Engine, scope: str, patch: dict[str, Any]) -> None:
    with engine.begin() as connection:
        documents.write_cloud(connection, scope, "twin", patch)


def pull(engine: Engine, device_id: str, cursor: int, now: datetime | None = None) -> Any:
    with engine.begin() as connection:
        return tombstones.pull(connection, device_id, cursor, 100, now or utc_now())


def test_it_folds_what_came_in_since_the_one_before(engine: Engine) -> None:
    with engine.begin() as connection:
        for device_id in ("edge-1", "edge-2"):
            records = [fact(1), fact(2), fact(1, {}, "inference_results")]
            push(connection, batch(1, records, device_id))
        push(connection, batch(2, [fact(3), lost(4, 6)]))
        documents.write_cloud(connection, "edge-1", "twin", {"desired": {"n": 1}})
    first = close(engine).folded
    assert (first.devices, first.batches, first.facts, first.documents) == (2, 3, 7, 1)
    with engine.begin() as connection:
        push(connection, batch(3, [fact(7)]))
    second = close(engine).folded
    assert (second.log_from, second.devices, second.batches, second.facts) == (first.log_to, 1, 1, 1)
    third = close(engine).folded
    assert (third.log_from, third.log_to, third.batches, third.facts) == (second.log_to, second.log_to, 0, 0)


def test_a_silent_device_is_overdue_until_it_is_seen(engine: Engine) -> None:
    with engine.begin() as connection:
        key = enrol(connection, "edge-3")
    assert close(engine).overdue == ()
    late = utc_now() + 16 * MINUTE
    run(engine, "UPDATE sync.device SET last_seen_at = :at WHERE device_id = 'edge-2'", at=late)
    run(engine, "UPDATE sync.device SET last_seen_at = enrolled_at WHERE device_id = 'edge-3'")
    assert close(engine, late).overdue == ("edge-1", "edge-3")
    with engine.begin() as connection:
        marks = {row.device_id: row.overdue_since for row in devices.list_devices(connection)}
        first = devices.find(connection, "edge-1")
    assert marks["edge-1"] == first.enrolled_at + 15 * MINUTE
    assert marks["edge-2"] is None
    # Seen again: no longer shown as overdue, and the next round takes the mark away. The clock here is not `late`.
    run(engine, "UPDATE sync.device SET overdue_since = now() - interval '1 minute' WHERE device_id = 'edge-3'")
    run(engine, "UPDATE sync.device SET last_seen_at = NULL WHERE device_id = 'edge-3'")
    with engine.begin() as connection:
        assert devices.authenticate(connection, key) == "edge-3"
        assert devices.find(connection, "edge-3").overdue_since is None
    assert close(engine).overdue == ()
    assert run(engine, "SELECT count(*) FROM sync.device WHERE overdue_since IS NOT NULL") == [(0,)]


def test_a_forgotten_device_is_not_overdue(engine: Engine) -> None:
    with engine.begin() as connection:
        devices.forget(connection, "edge-1")
    assert close(engine, utc_now() + DAY).overdue == ("edge-2",)


def test_a_device_whose_batch_is_under_way_holds_no_round_up(engine: Engine) -> None:
    with engine.connect() as other, other.begin():
        other.execute(text("SELECT 1 FROM sync.device WHERE device_id = 'edge-1' FOR UPDATE"))
        close(engine, utc_now() + DAY)
    assert run(engine, "SELECT device_id FROM sync.device WHERE overdue_since IS NOT NULL") == [("edge-2",)]
    assert close(engine, utc_now() + DAY).overdue == ("edge-1", "edge-2")
    assert run(engine, "SELECT count(*) FROM sync.device WHERE overdue_since IS NOT NULL") == [(2,)]


def test_facts_that_are_nowhere_are_a_gap_until_they_are_on_record(engine: Engine) -> None:
    with engine.begin() as connection:
        push(connection, batch(1, [fact(1), fact(2), lost(3, 5), fact(6)]))
        push(connection, batch(2, [fact(1, {"label": 1}, "labels")]))  # refused, so on record as lost
    assert close(engine).gaps == ()
    with engine.begin() as connection:
        push(connection, batch(3, [fact(7), fact(8), fact(9)]))
    run(engine, "DELETE FROM sync.fact WHERE seq IN (2, 7, 8)")  # what was found whole is not looked at again
    for _ in range(2):
        (gap,) = close(engine).gaps
        assert (gap.device_id, gap.epoch, gap.stream, gap.seq_from, gap.seq_to, gap.missing) == (
            "edge-1", 1, "telemetry", 7, 9, 2
        )  # fmt: skip
    run(engine, "INSERT INTO sync.lost VALUES ('edge-1', 1, 'telemetry', 7, 8, 'known to be gone')")
    assert close(engine).gaps == ()


def test_who_has_not_read_for_long_is_woken(engine: Engine) -> None:
    write(engine, "edge-1", {"desired": {"n": 1}})
    write(engine, "fleet", {"desired": {"n": 1}})
    behind = utc_now()
    pull(engine, "edge-1", 1, behind)
    run(engine, "UPDATE sync.device SET last_seen_at = now()")
    listener = database.Listener(engine, sync_log.CHANNEL)
    try:
        assert close(engine).woken == ()
        assert not listener.wait(0)
        assert close(engine, utc_now() + 3 * MINUTE).woken == ("fleet",)
        assert listener.wait(10)
    finally:
        listener.close()
    pull(engine, "edge-1", pull(engine, "edge-1", 1).next_cursor, behind + MINUTE)
    assert close(engine, utc_now() + 3 * MINUTE).woken == ()


def test_the_cursor_is_kept_now_and_then(engine: Engine) -> None:
    now = utc_now()
    kept = "SELECT cursor FROM sync.device WHERE device_id = 'edge-1'"
    for cursor, after_s, expected in ((0, 0, 0), (1, 9, 0), (2, 10, 2), (1, 21, 1), (1, 40, 1)):
        pull(engine, "edge-1", cursor, now + timedelta(seconds=after_s))
        assert run(engine, kept) == [(expected,)]
    with engine.connect() as other, other.begin():
        other.execute(text("SELECT 1 FROM sync.device WHERE device_id = 'edge-1' FOR UPDATE"))
        pull(engine, "edge-1", 5, now + DAY)
    assert run(engine, kept) == [(1,)]


def test_a_clock_that_was_ahead_for_a_while_freezes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    now = utc_now()
    with engine.begin() as connection:
        key = devices.rotate(connection, "edge-1")
    for cursor, ahead in ((1, 60 * DAY), (2, timedelta(0)), (3, -60 * DAY), (4, timedelta(0))):
        pull(engine, "edge-1", cursor, now + ahead)
        monkeypatch.setattr(devices, "utc_now", lambda ahead=ahead: now + ahead)
        with engine.begin() as connection:
            assert devices.authenticate(connection, key) == "edge-1"
        noted = "SELECT cursor, cursor_at, last_seen_at FROM sync.device WHERE device_id = 'edge-1'"
        assert run(engine, noted) == [(cursor, now + ahead, now + ahead)]


def deleted(engine: Engine, scope: str, days_ago: float) -> None:
    write(engine, scope, {"desired": {"n": 1}})
    write(engine, scope, {"desired": None})
    run(
        engine, "UPDATE sync.document SET updated_at = now() - make_interval(secs => :s) WHERE scope = :scope",
        s=days_ago * 86_400, scope=scope,
    )  # fmt: skip


def test_a_tombstone_goes_when_it_is_old_and_all_active_devices_have_read_it(engine: Engine) -> None:
    write(engine, "edge-1", {"desired": {"stays": True}})
    deleted(engine, "fleet", days_ago=31)
    deleted(engine, "edge-2", days_ago=29)
    run(engine, "UPDATE sync.device SET last_seen_at = now()")
    newest = run(engine, "SELECT max(log_seq) FROM sync.log")[0][0]
    now = utc_now()
    pull(engine, "edge-1", newest, now)
    pull(engine, "edge-2", 1, now)
    assert close(engine).tombstones == 0
    pull(engine, "edge-2", newest, now + MINUTE)
    assert close(engine).tombstones == 1
    assert run(engine, "SELECT scope FROM sync.document ORDER BY scope") == [("edge-1",), ("edge-2",)]
    assert close(engine).tombstones == 0


def test_an_inactive_device_is_not_waited_for_and_reads_everything_anew(engine: Engine) -> None:
    write(engine, "edge-1", {"desired": {"stays": True}})
    deleted(engine, "fleet", days_ago=40)
    now = utc_now()
    newest = pull(engine, "edge-1", 0, now).next_cursor
    pull(engine, "edge-1", newest, now + MINUTE)
    pull(engine, "edge-2", 1, now)
    run(engine, "UPDATE sync.device SET last_seen_at = now()")
    run(engine, "UPDATE sync.device SET last_seen_at = now() - interval '31 days' WHERE device_id = 'edge-2'")
    assert close(engine).tombstones == 1
    with pytest.raises(GoneError) as caught:
        pull(engine, "edge-2", 1)
    assert (caught.value.code, caught.value.http_status) == ("must_resync", 410)
    assert pull(engine, "edge-2", 0).next_cursor == newest
    assert [change.change.scope for change in pull(engine, "edge-1", 0).changes] == ["edge-1"]
    assert pull(engine, "edge-1", newest).changes == []


@settings(
    max_examples=30, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["put", "delete", "read", "round"]),
            st.integers(0, 1),
            st.integers(0, 40),
        ),
        max_size=25,
    )
)
def test_no_device_misses_a_deletion(store_engine: Engine, steps: list[tuple[str, int, int]]) -> None:
    """Whoever reads either learns of every deletion or is told to read all anew, whatever was removed between."""
    names = ("edge-1", "edge-2")
    run(store_engine, "TRUNCATE sync.device, sync.document, sync.log")
    run(store_engine, "UPDATE sync.round SET tombstone_watermark = 0, log_seq = 0")
    with store_engine.begin() as connection:
        for name in names:
            enrol(connection, name)
    now = datetime.now(UTC)
    cursors, held = [0, 0], [set[str](), set[str]()]
    resynced = 0

    def read(number: int) -> None:
        nonlocal resynced
        run(
            store_engine, "UPDATE sync.device SET last_seen_at = :at WHERE device_id = :name",
            at=now, name=names[number],
        )  # fmt: skip
        try:
            page = pull(store_engine, names[number], cursors[number], now)
        except GoneError:
            resynced += 1
            cursors[number], held[number] = 0, set()
            page = pull(store_engine, names[number], 0, now)
        for item in page.changes:
            change = item.change
            (held[number].discard if change.op == "del" else held[number].add)(change.key)
        cursors[number] = page.next_cursor

    for action, number, days in steps:
        now += days * DAY
        key = f"k{number}"
        if action == "round":
            close(store_engine, now)
        elif action == "read":
            read(number)
        else:
            with store_engine.begin() as connection:
                documents.write_cloud(
                    connection, "fleet", key, {"desired": {"days": days, "now": str(now)}}
                ) if action == "put" else _delete(connection, key)
                connection.execute(text("UPDATE sync.document SET updated_at = :at WHERE key = :key"),
                                   {"at": now, "key": key})  # fmt: skip
    for number in range(2):
        read(number)
    alive = {key for (key,) in run(store_engine, "SELECT key FROM sync.document WHERE value <> '{}'")}
    assert held == [alive, alive]


def _delete(connection: Any, key: str) -> None:
    if (known := documents.read(connection, "fleet", key)) and known.value:
        documents.write_cloud(connection, "fleet", key, {"desired": None})


def _state(engine: Engine) -> list[Any]:
    statements = (
        "SELECT device_id, overdue_since FROM sync.device ORDER BY 1",
        "SELECT scope, key FROM sync.document ORDER BY 1",
        "SELECT * FROM sync.audited", "SELECT log_seq, tombstone_watermark FROM sync.round",
    )  # fmt: skip
    return [run(engine, statement) for statement in statements]


def test_a_round_killed_in_the_middle_has_not_happened_and_the_next_does_its_work(
    engine: Engine, postgres_url: str, until_waiting: Callable[[Engine], None]
) -> None:
    with engine.begin() as connection:
        push(connection, batch(1, [fact(1), fact(2)]))
    deleted(engine, "fleet", days_ago=40)
    before = _state(engine)
    with engine.connect() as holder, holder.begin():
        # The last step of a round needs this lock; all before it is done when the process waits here.
        sync_log.lock(holder)
        process = subprocess.Popen([sys.executable, __file__, postgres_url])
        until_waiting(engine)
        assert process.poll() is None
        process.kill()
        process.wait(10)
    assert _state(engine) == before
    done = close(engine, utc_now() + DAY)
    assert (done.folded.batches, done.tombstones, done.overdue) == (1, 1, ("edge-1", "edge-2"))
    after = _state(engine)
    assert after != before
    again = close(engine, utc_now() + DAY)
    assert (again.folded.facts, again.tombstones) == (0, 0)
    assert _state(engine) == after


@pytest.fixture
def until_waiting() -> Callable[[Engine], None]:
    """Returns once a backend waits for the lock of the log."""

    def wait(engine: Engine) -> None:
        deadline = utc_now() + MINUTE
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
        while run(engine, waiting) == [(0,)]:
            assert utc_now() < deadline

    return wait


if __name__ == "__main__":
    close(database.connect(sys.argv[1], pool_size=1), utc_now() + DAY)
