"""Documents: owners, merge, pull, and the blobs they name."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from primespark.core.clock import HybridLogicalClock, Timestamp, wall_clock_ms
from primespark.errors import AuthorizationError, InvalidInputError
from primespark.store import documents, server, sync_log
from primespark.sync.documents import Document, merge, merge_patch, write
from primespark.sync.records import DocumentChange, PullResponse, PushResponse
from tests.helpers import rounds
from tests.integration.store.builders import batch, enrol, push

SHA = "a" * 64


def _nested(depth: int) -> Any:
    return [_nested(depth - 1)] if depth else 0


_names = (f"twin-{number}" for number in itertools.count())


def pulled_documents(page: PullResponse) -> list[DocumentChange]:
    """The documents of a page."""
    return [item.change for item in page.changes if isinstance(item.change, DocumentChange)]


class Edge:
    """A device's side of its twin: writes locally, pushes its whole state, takes what it pulls."""

    def __init__(self, engine: Engine, device_id: str, ahead_ms: int = 0) -> None:
        self.engine, self.device_id = engine, device_id
        self.document = Document()
        self.cursor = 0
        self._batches = 0
        self._writes = 2**32
        self._clock = HybridLogicalClock(device_id, lambda: wall_clock_ms() + ahead_ms)
        with engine.begin() as connection:
            enrol(connection, device_id)

    def write(self, patch: dict[str, Any]) -> None:
        self._writes += 1
        value = merge_patch(self.document.value, patch)
        hlc = str(self._clock.stamp())
        self.document = write(self.document, value, replica=self.device_id, counter=self._writes, hlc=hlc)

    def push(self, **other: Any) -> PushResponse:
        self._batches += 1
        change = documents.to_change(self.device_id, "twin", self.document).model_copy(update=other)
        with self.engine.begin() as connection:
            return push(connection, batch(self._batches, [change], self.device_id))

    def pull(self) -> list[DocumentChange]:
        with self.engine.begin() as connection:
            page = documents.pull(connection, self.device_id, self.cursor, 10)
        self.cursor = page.next_cursor
        changes = pulled_documents(page)
        for change in changes:
            self.document = merge(self.document, Document(change.value or {}, change.vv, change.leaf_hlc))
            self._clock.observe(Timestamp.parse(change.hlc))
        return changes

    def in_cloud(self) -> Document | None:
        with self.engine.begin() as connection:
            return documents.read(connection, self.device_id, "twin")


def cloud_write(engine: Engine, scope: str, patch: dict[str, Any], key: str = "twin") -> DocumentChange:
    with engine.begin() as connection:
        return documents.write_cloud(connection, scope, key, patch)


def test_desired_travels_down_and_reported_up(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1")
    change = cloud_write(store_engine, "edge-1", {"desired": {"rate": 1}})
    assert change.vv == {"cloud": 2**32 + 1}
    assert [pulled.value for pulled in edge.pull()] == [{"desired": {"rate": 1}}]
    assert edge.pull() == []
    edge.write({"reported": {"rate": 1}})
    assert edge.push().results == []
    found = edge.in_cloud()
    assert found is not None
    assert found.value == {"desired": {"rate": 1}, "reported": {"rate": 1}}
    assert found.vv == {"cloud": 2**32 + 1, "edge-1": 2**32 + 1}
    assert edge.push().results[0].status == "dup"


def test_a_concurrent_write_is_merged_and_the_device_is_told(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1")
    cloud_write(store_engine, "edge-1", {"desired": {"rate": 1}})
    edge.write({"reported": {"rate": 9}})
    (result,) = edge.push().results
    assert result.status == "merged"
    assert result.record is not None
    assert result.record.value == {"desired": {"rate": 1}, "reported": {"rate": 9}}


def test_each_side_keeps_what_is_its_own(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1")
    cloud_write(store_engine, "edge-1", {"desired": {"rate": 1}})
    edge.pull()
    edge.write({"desired": {"rate": 2}})
    (result,) = edge.push().results
    assert (result.status, result.code) == ("rejected", "not_owner")
    (result,) = edge.push(scope="fleet").results
    assert (result.status, result.code) == ("rejected", "not_owner")
    with pytest.raises(AuthorizationError) as caught:
        cloud_write(store_engine, "edge-1", {"reported": {"rate": 2}})
    assert caught.value.code == "not_owner"
    found = edge.in_cloud()
    assert found is not None
    assert found.value == {"desired": {"rate": 1}}


@pytest.mark.parametrize("pointer", ["", "/desired", "/desired/rate", "/desired/other"])
@pytest.mark.parametrize("op", ["put", "del"])
def test_a_device_cannot_erase_what_is_desired(store_engine: Engine, pointer: str, op: str) -> None:
    edge = Edge(store_engine, "edge-1")
    cloud_write(store_engine, "edge-1", {"desired": {"rate": 1}})
    edge.write({"reported": {"rate": 1}})
    value = None if op == "del" else {"reported": {"rate": 1}}
    leaf_hlc = edge.document.leaf_hlc | {pointer: edge.document.hlc}
    (result,) = edge.push(op=op, value=value, leaf_hlc=leaf_hlc).results
    assert (result.status, result.code) == ("rejected", "not_owner")
    found = edge.in_cloud()
    assert found is not None
    assert found.value == {"desired": {"rate": 1}}


def test_removed_leaves_do_not_gather_without_end(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1")
    for name, code in (("a", None), ("b", "document_too_large")):
        edge.document = Document()
        edge.write({"reported": {f"{name}{number}": 1 for number in range(6000)}})
        results = edge.push().results
        assert [result.code for result in results] == ([code] if code else [])


def test_a_device_cannot_speak_for_the_cloud(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1")
    forged = {"/desired/rate": str(Timestamp(wall_clock_ms(), 0, "cloud")), "/reported/a": _hlc("edge-1")}
    value = {"desired": {"rate": 666}, "reported": {"a": 1}}
    edge.write({"x": 1})
    (result,) = edge.push(value=value, leaf_hlc=forged, vv={"cloud": 2**61, "edge-1": 5}).results
    assert result.status == "merged"
    found = edge.in_cloud()
    assert found is not None
    assert (found.value, found.vv) == ({"reported": {"a": 1}}, {"edge-1": 5})
    assert cloud_write(store_engine, "edge-1", {"desired": {"rate": 1}}).vv["cloud"] == 2**32 + 1


@pytest.mark.parametrize(
    ("other", "code"),
    [
        ({"value": [1]}, "bad_document"),
        ({"value": {"reported": {"b": 1}}}, "bad_document"),
        ({"leaf_hlc": {}, "value": {}}, "bad_document"),
        ({"value": {"reported": {"a": "\x00"}}}, "unstorable_value"),
        ({"value": {"reported": {"a": _nested(40)}}}, "document_too_deep"),
        ({"value": {"reported": {"a": "x" * 1024 * 1024}}}, "document_too_large"),
        ({"value": {"reported": {"a": 1, "a\n": 1}}}, "bad_document"),
    ],
)
def test_what_is_no_document_is_rejected(store_engine: Engine, other: dict[str, Any], code: str) -> None:
    edge = Edge(store_engine, "edge-1")
    edge.write({"reported": {"a": 1}})
    (result,) = edge.push(**other).results
    assert (result.status, result.code) == ("rejected", code)
    assert edge.in_cloud() is None


def test_a_clock_that_runs_ahead_is_stamped_anew(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1", ahead_ms=86_400_000)
    for rate in (1, 2):
        edge.write({"reported": {"rate": rate}})
        (result,) = edge.push().results
        assert result.status == "restamped"
        assert result.record is not None
        assert result.record.value == {"reported": {"rate": rate}}
        assert Timestamp.parse(result.record.hlc).unix_ms <= wall_clock_ms() + 1000
    with store_engine.begin() as connection:
        assert Timestamp.parse(server.identity(connection).peek()).unix_ms <= wall_clock_ms() + 1000


def test_a_cloud_write_is_later_than_what_it_saw(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1", ahead_ms=30_000)
    edge.write({"note": "edge"})
    edge.push()
    cloud_write(store_engine, "edge-1", {"note": "cloud"})
    edge.pull()
    assert edge.document.value == {"note": "cloud"}


def test_a_patch_that_changes_nothing_writes_nothing(store_engine: Engine) -> None:
    first = cloud_write(store_engine, "edge-1", {"desired": {"rate": 1}})
    with store_engine.begin() as connection:
        newest = sync_log.newest(connection)
    assert cloud_write(store_engine, "edge-1", {"desired": {"rate": 1}}) == first
    with store_engine.begin() as connection:
        assert sync_log.newest(connection) == newest


@pytest.mark.parametrize(
    ("patch", "key", "code"),
    [
        ({}, "twin", "empty_document"),
        ({"a": float("nan")}, "twin", "unstorable_value"),
        ({"a": "\x00"}, "twin", "unstorable_value"),
        ({"a" * 600: 1}, "twin", "bad_document"),
        ({"a": 1}, "no key", "bad_document"),
        ({"a": {str(n): n for n in range(10_001)}}, "twin", "document_too_large"),
    ],
)
def test_a_patch_that_cannot_travel_is_refused(store_engine: Engine, patch: Any, key: str, code: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        cloud_write(store_engine, "edge-1", patch, key)
    assert caught.value.code == code


def test_pull_gives_the_newest_state_of_each_document_in_commit_order(store_engine: Engine) -> None:
    cloud_write(store_engine, "edge-1", {"a": 1}, "one")
    cloud_write(store_engine, "edge-2", {"a": 1}, "other")
    cloud_write(store_engine, "fleet", {"a": 1}, "shared")
    cloud_write(store_engine, "edge-1", {"a": 2}, "one")
    with store_engine.begin() as connection:
        page = documents.pull(connection, "edge-1", 0, 1)
        assert [(change.key, change.value) for change in pulled_documents(page)] == [("shared", {"a": 1})]
        assert page.has_more
        page = documents.pull(connection, "edge-1", page.next_cursor, 1)
        assert [(change.key, change.value) for change in pulled_documents(page)] == [("one", {"a": 2})]
        assert (page.has_more, page.next_cursor) == (False, sync_log.newest(connection))
        # Nothing for this device: the cursor moves on all the same.
        assert documents.pull(connection, "nobody", 1, 10).next_cursor == sync_log.newest(connection)
        # A cursor of a database that is no more.
        assert len(documents.pull(connection, "edge-1", 10**6, 10).changes) == 2


def test_a_page_of_large_documents_is_closed_early(store_engine: Engine) -> None:
    for number in range(12):
        cloud_write(store_engine, "edge-1", {"desired": {"text": "x" * 1_000_000}}, f"large-{number}")
    cursor, pages, has_more = 0, [], True
    while has_more:
        with store_engine.begin() as connection:
            page = documents.pull(connection, "edge-1", cursor, 1000)
        pages.append([change.key for change in pulled_documents(page)])
        assert len(page.model_dump_json()) < documents.PAGE_BYTES + 2 * 1024 * 1024
        cursor, has_more = page.next_cursor, page.has_more
    assert [len(keys) for keys in pages] == [9, 3]
    assert [key for keys in pages for key in keys] == [f"large-{number}" for number in range(12)]


def test_an_answer_tells_of_merged_documents_up_to_a_page(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1")
    keys = [f"large-{number}" for number in range(12)]
    for key in keys:
        cloud_write(store_engine, "edge-1", {"desired": {"text": "x" * 1_000_000}}, key)
    edge.write({"reported": {"rate": 1}})
    changes = [documents.to_change("edge-1", key, edge.document) for key in keys]
    with store_engine.begin() as connection:
        answer = push(connection, batch(1, changes))
    assert [result.status for result in answer.results] == ["merged"] * 12
    assert [result.record is not None for result in answer.results] == [True] * 8 + [False] * 4
    assert [change.value for change in edge.pull()] == [
        {"desired": {"text": "x" * 1_000_000}, "reported": {"rate": 1}}
    ] * 9


def test_a_removed_field_stays_removed(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1")
    cloud_write(store_engine, "edge-1", {"desired": {"rate": 1}})
    edge.pull()
    change = cloud_write(store_engine, "edge-1", {"desired": None})
    assert (change.op, change.value) == ("del", None)
    edge.write({"reported": {"rate": 1}})
    edge.push()
    edge.pull()
    assert edge.document.value == {"reported": {"rate": 1}}


def test_a_device_reads_the_blobs_the_cloud_names_to_it(store_engine: Engine) -> None:
    edge = Edge(store_engine, "edge-1")

    def names(device_id: str, sha256: str = SHA) -> bool:
        with store_engine.begin() as connection:
            return documents.names_blob(connection, device_id, sha256)

    edge.write({"reported": {"blob": SHA}, "blob": SHA})
    edge.push()
    assert not names("edge-1"), "a device named a blob to itself"
    cloud_write(store_engine, "edge-1", {"desired": {"models": {"digits": {"artifacts": [SHA]}}}})
    assert names("edge-1")
    assert not names("edge-2")
    assert not names("edge-1", "b" * 64)
    cloud_write(store_engine, "fleet", {"models": {"x": "b" * 64}}, "shared")
    assert names("edge-2", "b" * 64)


values = st.one_of(st.integers(0, 3), st.none(), st.dictionaries(st.sampled_from("pq"), st.integers(0, 3), max_size=2))
patches = st.dictionaries(st.sampled_from("abc"), values, min_size=1, max_size=2)
acts: st.SearchStrategy[tuple[str, dict[str, Any]]] = st.one_of(
    st.tuples(st.just("cloud"), patches), st.tuples(st.just("edge"), patches),
    st.tuples(st.sampled_from(["push", "pull", "push lost"]), st.just({})),
)  # fmt: skip


@pytest.mark.prove
@settings(
    max_examples=rounds(40, 600), suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.lists(acts, max_size=12), st.sampled_from([-86_400_000, 0, 30_000]))
def test_cloud_and_device_converge(law_engine: Engine, history: list[tuple[str, Any]], ahead_ms: int) -> None:
    """After one push and one pull both hold the same, whatever was lost; a write after all others stands."""
    edge = Edge(law_engine, next(_names), ahead_ms)
    for act, patch in history:
        _act(law_engine, edge, act, patch)
    if edge.document.vv:
        edge.push()
    edge.pull()
    found = edge.in_cloud() or Document()
    assert edge.document.value == found.value
    assert edge.document.leaf_hlc == found.leaf_hlc
    cloud_write(law_engine, edge.device_id, {"last": next(_names)})
    edge.pull()
    after = edge.in_cloud()
    assert after is not None
    assert edge.document.value == after.value


def _act(engine: Engine, edge: Edge, act: str, patch: dict[str, Any]) -> None:
    if act == "cloud":
        known = edge.in_cloud() or Document()
        if merge_patch(known.value, patch) != known.value:
            cloud_write(engine, edge.device_id, patch)
            after = edge.in_cloud()
            assert after is not None
            assert after.value == merge_patch(known.value, patch)
    elif act == "edge":
        if merge_patch(edge.document.value, patch) != edge.document.value:
            edge.write(patch)
    elif act == "pull":
        edge.pull()
    elif edge.document.vv:
        edge.push()


def _hlc(replica: str) -> str:
    return str(Timestamp(wall_clock_ms(), 0, replica))
