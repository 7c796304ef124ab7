"""Groups in the store: who reads what, and that a reading from the beginning ends, however much was forgotten."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Engine, text

from primespark.core.clock import utc_now
from primespark.errors import GoneError, InvalidInputError, NotFoundError
from primespark.store import devices, documents, groups, sync_log, tombstones
from primespark.store.database import Listener
from primespark.sync.records import DataClass, DocumentChange, PullResponse
from tests.integration.store.builders import batch, enrol, push
from tests.integration.store.test_rounds import MINUTE, close

DAY = timedelta(days=1)


@pytest.fixture
def engine(store_engine: Engine) -> Engine:
    with store_engine.begin() as connection:
        enrol(connection, "edge-1")
        enrol(connection, "edge-2")
    return store_engine


def join(engine: Engine, group: str, device_id: str = "edge-1") -> bool:
    with engine.begin() as connection:
        return groups.join(connection, device_id, group)


def write(engine: Engine, scope: str, key: str = "k", n: int | None = 1) -> None:
    with engine.begin() as connection:
        documents.write_cloud(connection, scope, key, {"n": n})


def pull(engine: Engine, device_id: str, cursor: int = 0, limit: int = 100, snapshot: int = 0) -> PullResponse:
    with engine.begin() as connection:
        return tombstones.pull(connection, device_id, cursor, limit, utc_now(), snapshot)


def scopes(page: PullResponse) -> list[str]:
    return [item.change.scope for item in page.changes if isinstance(item.change, DocumentChange)]


def test_a_device_reads_its_own_its_groups_and_the_fleet(engine: Engine) -> None:
    for scope in ("fleet", "group:b", "group:a", "edge-1", "group:c", "edge-2"):
        write(engine, scope)
    assert [join(engine, name) for name in ("b", "a", "b")] == [True, True, False]
    page = pull(engine, "edge-1")
    assert (scopes(page), page.groups) == (["fleet", "group:b", "group:a", "edge-1"], ["a", "b"])
    assert scopes(pull(engine, "edge-2")) == ["fleet", "edge-2"]
    with engine.begin() as connection:
        assert devices.find(connection, "edge-1").groups == ("a", "b")
        assert [row.groups for row in devices.list_devices(connection)] == [("a", "b"), ()]
        groups.leave(connection, "edge-1", "b")
        assert groups.of_device(connection, "edge-1") == ["a"]
        with pytest.raises(NotFoundError):
            groups.leave(connection, "edge-1", "b")
    assert scopes(pull(engine, "edge-1")) == ["fleet", "group:a", "edge-1"]


def test_only_devices_join_and_not_without_end(engine: Engine) -> None:
    with pytest.raises(NotFoundError):
        join(engine, "a", "edge-9")
    for number in range(groups.MAX_GROUPS_OF_A_DEVICE):
        assert join(engine, f"g{number}")
    with pytest.raises(InvalidInputError) as caught:
        join(engine, "another")
    assert caught.value.code == "too_many_groups"
    assert not join(engine, "g0")


def test_who_waits_hears_of_a_membership(engine: Engine) -> None:
    listener = Listener(engine, sync_log.CHANNEL)
    join(engine, "a")
    assert listener.wait(5)
    join(engine, "a")
    assert not listener.wait(0)
    with engine.begin() as connection:
        groups.leave(connection, "edge-1", "a")
    assert listener.wait(5)
    listener.close()


def test_a_device_may_not_write_what_its_group_has(engine: Engine) -> None:
    join(engine, "a")
    hlc = "1790000000000-0000-edge-1"
    change = DocumentChange(
        data_class=DataClass.CONFIGURATIONS, scope="group:a", key="k", vv={"edge-1": 2**32 + 1}, hlc=hlc,
        leaf_hlc={"/n": hlc}, value={"n": 1},
    )  # fmt: skip
    with engine.begin() as connection:
        (result,) = push(connection, batch(1, [change])).results
        assert (result.status, result.code) == ("rejected", "not_owner")
        assert documents.read(connection, "group:a", "k") is None


def test_a_blob_that_a_group_names_is_its_members_to_read(engine: Engine) -> None:
    join(engine, "a")
    with engine.begin() as connection:
        documents.write_cloud(connection, "group:a", "k", {"models": {"x": "a" * 64}})
        assert documents.names_blob(connection, "edge-1", "a" * 64)
        assert not documents.names_blob(connection, "edge-2", "a" * 64)


def test_a_member_that_missed_a_change_is_woken(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("UPDATE sync.device SET last_seen_at = now(), cursor = 0"))
    write(engine, "group:a")
    assert close(engine, utc_now() + 3 * MINUTE).woken == ()
    join(engine, "a", "edge-2")
    assert close(engine, utc_now() + 3 * MINUTE).woken == ("group:a",)


def test_a_reading_from_the_beginning_ends_where_more_was_forgotten_than_fits_a_page(engine: Engine) -> None:
    for number in range(5):
        write(engine, "fleet", f"k{number}")
    write(engine, "fleet", "gone")
    write(engine, "fleet", "gone", None)
    with engine.begin() as connection:
        connection.execute(text("UPDATE sync.document SET updated_at = now() - interval '40 days'"))
        assert tombstones.collect(connection, utc_now(), 30 * DAY, 30 * DAY) == 1
    with pytest.raises(GoneError):
        pull(engine, "edge-1", 2)
    found: list[str] = []
    page = pull(engine, "edge-1", limit=2)
    while True:
        found += [item.change.key for item in page.changes if isinstance(item.change, DocumentChange)]
        if not page.has_more:
            break
        # Without its snapshot it were sent back to the beginning, for ever.
        with pytest.raises(GoneError):
            pull(engine, "edge-1", page.next_cursor, 2)
        page = pull(engine, "edge-1", page.next_cursor, 2, page.snapshot or 0)
    assert found == [f"k{number}" for number in range(5)]


def test_what_was_forgotten_after_the_snapshot_begins_the_reading_anew(engine: Engine) -> None:
    for number in range(3):
        write(engine, "fleet", f"k{number}")
    page = pull(engine, "edge-1", limit=1)
    write(engine, "fleet", "k0", None)
    with engine.begin() as connection:
        connection.execute(text("UPDATE sync.device SET cursor = NULL"))
        connection.execute(text("UPDATE sync.document SET updated_at = now() - interval '40 days'"))
        assert tombstones.collect(connection, utc_now(), 30 * DAY, 30 * DAY) == 1
    with pytest.raises(GoneError):
        pull(engine, "edge-1", page.next_cursor, 1, page.snapshot or 0)


def test_a_position_of_a_log_that_was_longer_is_none(engine: Engine) -> None:
    write(engine, "fleet")
    with engine.begin() as connection:
        newest = sync_log.newest(connection)
    for cursor, snapshot in ((newest + 5, 0), (newest, newest + 5)):
        page = pull(engine, "edge-1", cursor, snapshot=snapshot)
        assert (scopes(page), page.snapshot) == (["fleet"], newest)
