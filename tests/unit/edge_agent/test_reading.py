"""What the device drops: documents of groups it left, and what a reading from the beginning no longer came across."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from edge_agent import schema
from edge_agent.database import Database
from edge_agent.documents import Documents
from edge_agent.outgoing import Outgoing
from edge_agent.reading import Sweep
from edge_agent.schema import write_meta
from primespark.sync.documents import Document, write
from primespark.sync.records import DocumentChange, PulledChange, PullResponse
from tests.unit.edge_agent.test_queue import answer

HLC = "1790000000000-0000-cloud"


@pytest.fixture
def documents(database: Database) -> Documents:
    database.submit(lambda connection: write_meta(connection, "epoch", 1)).result()
    return Documents(database, "edge-1")


def change(scope: str, key: str, value: dict[str, object], counter: int = 1) -> DocumentChange:
    document = write(Document(), value, replica="cloud", counter=counter, hlc=f"179000000{counter:04d}-0000-cloud")
    return DocumentChange.model_validate(
        {
            "data_class": "configurations", "scope": scope, "key": key, "op": "put", "vv": document.vv,
            "hlc": document.hlc, "leaf_hlc": document.leaf_hlc, "value": document.value,
        }
    )  # fmt: skip


async def take(
    documents: Documents, *changes: DocumentChange, to: int, groups: list[str] | None = None, has_more: bool = False
) -> bool:
    here = await documents.position()
    page = PullResponse(
        changes=[PulledChange(cursor=to, change=change) for change in changes], next_cursor=to, has_more=has_more,
        server_epoch=1, server_hlc=HLC, snapshot=here.snapshot or to, groups=groups,
    )  # fmt: skip
    return await documents.apply(page, here.cursor)


async def places(documents: Documents) -> list[str]:
    return [f"{kept.scope}/{kept.key}" for kept in await documents.page(("", ""), 1000)]


async def test_what_holds_is_the_device_over_its_groups_by_name_over_the_fleet(documents: Documents) -> None:
    await take(
        documents,
        change("group:b", "k", {"b": "b", "all": "b", "a_and_b": "b"}),
        change("edge-1", "k", {"all": "own", "gone": None}),
        change("group:a", "k", {"a": "a", "all": "a", "a_and_b": "a"}),
        change("fleet", "k", {"fleet": 1, "all": "fleet", "gone": 1}),
        to=4,
        groups=["a", "b"],
    )
    holds = {"fleet": 1, "a": "a", "b": "b", "a_and_b": "b", "all": "own"}
    assert await documents.effective("k") == holds


async def test_who_joins_reads_from_the_beginning_and_who_leaves_drops(documents: Documents) -> None:
    held = [change("fleet", "k", {"n": 1}), change("edge-1", "k", {"n": 1})]
    await take(documents, *held, change("edge-1", "gone", {"n": 1}), to=9, groups=[])
    assert not await take(documents, to=9, groups=["a"])
    assert (await documents.position()).cursor == 0
    assert (await documents.position()).groups == ("a",)
    # In two pages; what was there meanwhile is not dropped before the last.
    await take(documents, change("group:a", "k", {"n": 1}), to=3, groups=["a"], has_more=True)
    assert await places(documents) == ["edge-1/gone", "edge-1/k", "fleet/k", "group:a/k"]
    # Of its own documents too, one may have been deleted, and the deletion forgotten, before the beginning was read.
    await take(documents, *held, to=9, groups=["a"])
    assert await places(documents) == ["edge-1/k", "fleet/k", "group:a/k"]
    assert await take(documents, to=9, groups=[])
    assert await places(documents) == ["edge-1/k", "fleet/k"]
    assert (await documents.position()).cursor == 9
    assert await documents.effective("k") == {"n": 1}


async def test_a_cloud_that_names_no_groups_changes_none(documents: Documents) -> None:
    await take(documents, change("group:a", "k", {"n": 1}), to=9, groups=["a"])
    await take(documents, to=10, groups=None)
    assert (await documents.position()).groups == ("a",)
    assert await places(documents) == ["group:a/k"]


@pytest.mark.parametrize(("sweep", "is_kept"), [(Sweep.ALL, False), (Sweep.SHARED, True)])
async def test_what_is_no_longer_there_is_dropped(documents: Documents, sweep: Sweep, is_kept: bool) -> None:
    await take(documents, change("fleet", "old", {"n": 1}), change("edge-1", "old", {"n": 1}), to=9)
    await documents.patch("mine", {"n": 1})
    await documents.read_anew(sweep)
    await take(documents, change("fleet", "new", {"n": 1}), to=20)
    # What the cloud does not have yet is not what it has no more.
    assert await places(documents) == ["edge-1/mine", *(["edge-1/old"] if is_kept else []), "fleet/new"]
    # The next page is no reading from the beginning.
    await take(documents, to=21)
    assert "fleet/new" in await places(documents)


async def test_a_reading_that_drops_all_still_does_when_another_begins(documents: Documents) -> None:
    await take(documents, change("edge-1", "old", {"n": 1}), to=9, groups=[])
    await documents.read_anew(Sweep.ALL)
    await take(documents, to=3, groups=["a"], has_more=True)
    await documents.read_anew(Sweep.SHARED)
    await take(documents, to=12, groups=["a"])
    assert await places(documents) == []


async def test_what_was_sent_while_reading_stays(documents: Documents, database: Database) -> None:
    outgoing = Outgoing(database, "edge-1", 10, 100_000)
    await documents.patch("before", {"n": 1})
    await documents.read_anew(Sweep.ALL)
    await documents.patch("during", {"n": 1})
    batch = await outgoing.next_batch()
    assert batch is not None
    await outgoing.acknowledge(batch.batch_seq, answer(batch))
    # A page that was made before the batch was applied.
    await take(documents, to=9)
    assert await places(documents) == ["edge-1/before", "edge-1/during"]


async def test_a_file_of_the_version_before_keeps_its_documents(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    before = sqlite3.connect(path, isolation_level=None)
    before.executescript("; ".join(schema.STEPS[:4]))
    before.execute(
        "INSERT INTO document (scope, key, value, vv, leaf_hlc, dirty) VALUES ('edge-1', 'k', '{\"n\": 1}', ?, ?, 0)",
        ('{"cloud": 1}', f'{{"/n": "{HLC}"}}'),
    )
    before.execute("PRAGMA user_version = 4")
    before.close()
    database = Database(path)
    documents = Documents(database, "edge-1")
    assert await places(documents) == ["edge-1/k"]
    assert (await documents.position()).groups == ()
    database.close()
