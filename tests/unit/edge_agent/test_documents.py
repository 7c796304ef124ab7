"""Documents at the device: owners, versions, what waits to be sent, what the cloud's word does to it."""

from __future__ import annotations

import pytest

from edge_agent.database import Database
from edge_agent.documents import Documents, Kept, load_kept, store, to_change
from edge_agent.outgoing import Outgoing
from edge_agent.reading import Sweep
from edge_agent.replica import COUNTERS_PER_EPOCH
from edge_agent.schema import forget_meta, write_meta
from primespark.errors import AuthorizationError, InvalidInputError
from primespark.sync.documents import Document, write
from primespark.sync.records import DocumentChange, PulledChange, PullResponse, PushResponse, RecordResult, ResultStatus
from tests.unit.edge_agent.test_queue import answer, payload

HLC = "1790000000000-0000-cloud"


@pytest.fixture
def documents(database: Database) -> Documents:
    database.submit(lambda connection: write_meta(connection, "epoch", 1)).result()
    return Documents(database, "edge-1")


def page(*changes: DocumentChange, cursor: int = 1) -> PullResponse:
    return PullResponse(
        changes=[PulledChange(cursor=cursor, change=change) for change in changes], next_cursor=cursor, has_more=False,
        server_epoch=1, server_hlc=HLC,
    )  # fmt: skip


def from_cloud(value: dict[str, object], counter: int, known: Document | None = None, **place: str) -> DocumentChange:
    hlc = f"179000000{counter:04d}-0000-cloud"
    document = write(known or Document(), value, replica="cloud", counter=counter, hlc=hlc)
    return DocumentChange.model_validate(
        {
            "data_class": "configurations", "scope": place.get("scope", "edge-1"), "key": "twin", "op": "put",
            "vv": document.vv, "hlc": document.hlc, "leaf_hlc": document.leaf_hlc, "value": document.value,
        }
    )  # fmt: skip


async def take(documents: Documents, answer: PullResponse) -> bool:
    """Take a page asked for from where the device is."""
    return await documents.apply(answer, (await documents.position()).cursor)


async def test_a_page_asked_for_before_a_reset_is_left(documents: Documents) -> None:
    await take(documents, page(from_cloud({"desired": {"rate": 1}}, 1), cursor=5))
    await documents.read_anew(Sweep.ALL)
    assert not await documents.apply(page(from_cloud({"desired": {"rate": 2}}, 2), cursor=9), 5)
    assert (await documents.position()).cursor == 0
    assert (await documents.effective("twin"))["desired"] == {"rate": 1}


async def test_reported_is_the_devices_and_desired_is_not(documents: Documents) -> None:
    await take(documents, page(from_cloud({"desired": {"rate": 1}}, 1)))
    document = await documents.patch("twin", {"reported": {"rate": 1}})
    assert document.value == {"desired": {"rate": 1}, "reported": {"rate": 1}}
    for patch in ({"desired": {"rate": 2}}, {"desired": None}, {"desired": {"other": 1}}):
        with pytest.raises(AuthorizationError) as refused:
            await documents.patch("twin", patch)
        assert refused.value.code == "not_owner"


async def test_the_same_value_again_writes_nothing(documents: Documents) -> None:
    first = await documents.patch("twin", {"reported": {"rate": 1}})
    assert await documents.patch("twin", {"reported": {"rate": 1}}) == first


async def test_counters_begin_at_the_epoch_and_stamps_increase(database: Database, documents: Documents) -> None:
    outgoing = Outgoing(database, "edge-1", 10, 100_000)
    await database.run(lambda connection: forget_meta(connection, "epoch"))
    before = await documents.patch("twin", {"reported": {"n": 0}})
    assert 0 < before.vv["edge-1"] < COUNTERS_PER_EPOCH
    await outgoing.begin_epoch(7)
    renumbered = await documents.read("edge-1", "twin")
    assert renumbered is not None
    assert renumbered.vv["edge-1"] > 7 * COUNTERS_PER_EPOCH
    stamps = [renumbered.hlc]
    for number in range(1, 20):
        written = await documents.patch("twin", {"reported": {"n": number}})
        stamps.append(written.leaf_hlc["/reported/n"])
    assert stamps == sorted(set(stamps))


async def test_a_write_during_a_push_is_sent_with_the_next(database: Database, documents: Documents) -> None:
    outgoing = Outgoing(database, "edge-1", 10, 100_000)
    await outgoing.begin_epoch(1)
    await documents.patch("twin", {"reported": {"n": 1}})
    batch = await outgoing.next_batch()
    assert batch is not None
    await documents.patch("twin", {"reported": {"n": 2}})
    assert await outgoing.next_batch() == batch
    await outgoing.acknowledge(1, answer(batch))
    assert outgoing.waiting == 1
    second = await outgoing.next_batch()
    assert second is not None
    (change,) = payload(second).records
    assert isinstance(change, DocumentChange)
    assert change.value == {"reported": {"n": 2}}
    await outgoing.acknowledge(2, answer(second))
    assert outgoing.waiting == 0
    assert await outgoing.next_batch() is None


async def test_the_clouds_word_and_an_unsent_write_both_stand(documents: Documents) -> None:
    await documents.patch("twin", {"reported": {"n": 1}})
    assert await take(documents, page(from_cloud({"desired": {"rate": 5}}, 1)))
    assert await documents.effective("twin") == {"desired": {"rate": 5}, "reported": {"n": 1}}
    (kept,) = await documents.page(("", ""), 1000)
    assert kept.is_dirty


async def test_without_an_epoch_nothing_is_taken(database: Database, documents: Documents) -> None:
    await database.run(lambda connection: forget_meta(connection, "epoch"))
    assert not await take(documents, page(from_cloud({"desired": {"rate": 5}}, 1)))
    assert ((await documents.position()).cursor, await documents.page(("", ""), 1000)) == (0, [])


async def test_an_older_state_changes_nothing(documents: Documents) -> None:
    old = from_cloud({"desired": {"rate": 1}}, 1)
    new = from_cloud({"desired": {"rate": 2}}, 2, Document({"desired": {"rate": 1}}, dict(old.vv), dict(old.leaf_hlc)))
    assert await take(documents, page(new, cursor=2))
    assert not await take(documents, page(old, cursor=3))
    assert (await documents.position()).cursor == 3
    assert (await documents.effective("twin"))["desired"] == {"rate": 2}


async def test_the_fleets_document_holds_below_the_devices(documents: Documents) -> None:
    await take(documents, page(from_cloud({"desired": {"rate": 1, "mode": "day"}}, 1, scope="fleet")))
    await take(documents, page(from_cloud({"desired": {"rate": 9}}, 2), cursor=2))
    assert (await documents.effective("twin"))["desired"] == {"rate": 9, "mode": "day"}


async def test_a_stamp_that_ran_ahead_is_replaced_by_the_clouds(database: Database, documents: Documents) -> None:
    outgoing = Outgoing(database, "edge-1", 10, 100_000)
    await outgoing.begin_epoch(1)
    await documents.patch("twin", {"reported": {"n": 1}})
    batch = await outgoing.next_batch()
    assert batch is not None
    kept = await database.run(lambda connection: load_kept(connection, "edge-1", "twin"))
    assert kept is not None
    stamp = "1790000000001-0000-edge-1"
    restamped = to_change(kept).model_copy(update={"hlc": stamp, "leaf_hlc": {"/reported/n": stamp}})
    result = RecordResult(index=0, status=ResultStatus.RESTAMPED, record=restamped)
    await outgoing.acknowledge(
        1, PushResponse(status="applied", ack_batch_seq=1, results=[result], server_hlc=HLC, server_epoch=1)
    )
    document = await documents.read("edge-1", "twin")
    assert document is not None
    assert (document.hlc, outgoing.waiting) == (stamp, 0)
    assert batch.records == 1


async def test_a_refused_document_is_kept_aside_and_not_sent_for_ever(database: Database, documents: Documents) -> None:
    outgoing = Outgoing(database, "edge-1", 10, 100_000)
    await outgoing.begin_epoch(1)
    await documents.patch("settings", {"n": 1})
    batch = await outgoing.next_batch()
    assert batch is not None
    await outgoing.acknowledge(1, answer(batch, rejected=[0]))
    assert outgoing.waiting == 0
    codes = await database.run(lambda c: c.execute("SELECT stream, seq, code FROM dead_letter").fetchall())
    assert codes == [("settings", 0, "bad_label")]


async def test_what_could_not_travel_is_refused_and_keeps_nothing(database: Database, documents: Documents) -> None:
    with pytest.raises(InvalidInputError) as refused:
        await documents.patch("a key of words", {"n": 1})
    assert refused.value.code == "bad_document"
    with pytest.raises(InvalidInputError) as refused:
        await documents.patch("settings", {"text": "x" * 2**20})
    assert refused.value.code == "document_too_large"
    assert await documents.page(("", ""), 1000) == []
    assert await Outgoing(database, "edge-1", 10, 100_000).next_batch() is None


POISON = Document({"a\nb": 1, "n": 1}, {"edge-1": 2**32 + 1}, dict.fromkeys(("/a\nb", "/n"), HLC))


async def test_a_document_that_cannot_travel_is_set_aside(database: Database, documents: Documents) -> None:
    outgoing = Outgoing(database, "edge-1", 10, 100_000)
    surrogate = Document({"n": "\ud800"}, {"edge-1": 2**32 + 2}, {"/n": HLC})
    await database.run(lambda c: store(c, Kept("edge-1", "settings", POISON, is_dirty=True)))
    await database.run(lambda c: store(c, Kept("edge-1", "surrogate", surrogate, is_dirty=True)))
    await documents.patch("twin", {"reported": {"n": 1}})
    batch = await outgoing.next_batch()
    assert batch is not None
    assert [record.model_dump()["key"] for record in payload(batch).records] == ["twin"]
    assert outgoing.waiting == 1
    letters = await database.run(lambda c: c.execute("SELECT stream, code, record FROM dead_letter").fetchall())
    assert letters == [
        ("settings", "bad_document", r'{"a\nb": 1, "n": 1}'), ("surrogate", "bad_document", r'{"n": "\ud800"}')
    ]  # fmt: skip


@pytest.mark.parametrize("value", [{}, {"n": 2}], ids=["deleted", "corrected"])
async def test_a_document_that_could_not_travel_is_mended(
    database: Database, documents: Documents, value: dict[str, int]
) -> None:
    await database.run(lambda c: store(c, Kept("edge-1", "settings", POISON, is_dirty=True)))
    await documents.change("settings", lambda _: value)
    batch = await Outgoing(database, "edge-1", 10, 100_000).next_batch()
    assert batch is not None
    (change,) = payload(batch).records
    assert isinstance(change, DocumentChange)
    assert (change.value, set(change.leaf_hlc)) == (value or None, {"/n"})
    assert change.op == ("put" if value else "del")
