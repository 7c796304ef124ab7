"""Two real devices and a real cloud in one process, and a network between them that does what networks do."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, text

from edge_agent.database import Database
from edge_agent.documents import Documents, Kept, load_kept
from edge_agent.outgoing import Batch, Outgoing
from edge_agent.queue import NewFact, OfflineQueue
from edge_agent.reading import Sweep
from primespark.core.clock import utc_now, wall_clock_ms
from primespark.core.encoding import decode_body
from primespark.core.settings import OfflineSettings
from primespark.core.web.bodies import parse_with
from primespark.errors import ConflictError, GoneError, MalformedError
from primespark.store import devices, documents, gate, server, tombstones
from primespark.store.reconciliation import DocumentRules
from primespark.sync.batches import read_batch
from primespark.sync.documents import Document, merge_patch
from primespark.sync.records import DataClass, PullResponse, PushResponse

Answer = TypeVar("Answer")
_MAX_BYTES = 1_000_000
_MAX_ROUNDS = 12


class Fault(StrEnum):
    """What becomes of a request and its reply; each pushed batch also stays in the network, to come again."""

    NONE = "none"
    REQUEST_LOST = "request lost"
    REQUEST_CORRUPTED = "request corrupted"
    REPLY_LOST = "reply lost"
    TWICE = "twice"
    ROLLED_BACK = "rolled back"


@dataclass(frozen=True, slots=True)
class _Page:
    """A reply to a pull that the network still holds."""

    edge: Edge
    asked_from: int
    page: PullResponse


class Edge:
    """A device with its own file and clock."""

    def __init__(self, folder: Path, device_id: str, fleet_writable: Sequence[str] = ("",), ahead_ms: int = 0) -> None:
        self.device_id = device_id
        self.ahead_ms = ahead_ms
        self.database = Database(folder / f"{device_id}.db")
        self.queue = OfflineQueue(self.database, OfflineSettings(minimum_free_disk_bytes=0))
        self.documents = Documents(self.database, device_id, fleet_writable, self.now_ms)
        self.outgoing = Outgoing(self.database, device_id, 5, 100_000, now_ms=self.now_ms)

    def now_ms(self) -> int:
        """What its clock says."""
        return wall_clock_ms() + self.ahead_ms


def _all_kept(connection: sqlite3.Connection) -> list[Kept]:
    """Documents at a device, deleted ones too: a writer who was shown a deletion has seen it."""
    places = connection.execute("SELECT scope, key FROM document").fetchall()
    return [kept for place in places if (kept := load_kept(connection, *place)) is not None]


class Exchange:
    """Devices, their cloud, and what is on its way between them."""

    def __init__(self, engine: Engine, folder: Path, rules: DocumentRules, edges: dict[str, int]) -> None:
        self.engine, self.rules = engine, rules
        self._loop = asyncio.new_event_loop()
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM sync.document"))
            connection.execute(text("DELETE FROM sync.conflict"))
            for device_id in edges:
                token = devices.create_token(connection, 1, timedelta(hours=1))
                devices.enrol(connection, token, device_id, {}, {})
        self.edges = [Edge(folder, device_id, ahead_ms=ahead_ms) for device_id, ahead_ms in edges.items()]
        # What a device read of a document when the cloud last had all its writes, by device, scope and key.
        self.read: dict[tuple[str, str, str], dict[str, int]] = {}
        self._batches: list[tuple[Edge, Batch]] = []
        self._pages: list[_Page] = []
        for edge in self.edges:
            self.run(edge.outgoing.begin_epoch(1))

    def close(self) -> None:
        """End the devices."""
        for edge in self.edges:
            edge.database.close()
        self._loop.close()

    def run(self, work: Coroutine[Any, Any, Answer]) -> Answer:
        """What a device's coroutine gives."""
        return self._loop.run_until_complete(work)

    def change(self, edge: Edge, scope: str, key: str, patch: dict[str, Any]) -> tuple[Document, Document]:
        """Write at a device; the document before and after."""
        seen: list[Document] = []

        def change(document: Document) -> dict[str, Any]:
            seen.append(document)
            return dict(merge_patch(document.value, patch))

        after = self.run(edge.documents.change(key, change, scope))
        return seen[0], after

    def in_cloud(self, scope: str, key: str) -> Document:
        """What the cloud has."""
        with self.engine.begin() as connection:
            return documents.read(connection, scope, key) or Document()

    def enqueue(self, edge: Edge, number: int) -> None:
        """Something happened at a device."""
        fact = NewFact(DataClass.TELEMETRY, {"number": float(number)})
        self.run(edge.queue.enqueue([fact]))

    def push(self, edge: Edge, fault: Fault = Fault.NONE) -> bool:
        """Send the batch that is next; whether there was one."""
        batch = self.run(edge.outgoing.next_batch())
        if batch is None:
            return self._begin_epoch(edge)
        self._batches.append((edge, batch))
        if fault is Fault.REQUEST_LOST:
            return True
        if fault is Fault.REQUEST_CORRUPTED:
            at = len(batch.body) // 2
            damaged = batch.body[:at] + bytes([batch.body[at] ^ 1]) + batch.body[at + 1 :]
            self._refuse(batch, damaged)
            return True
        try:
            reply = self._receive(batch, is_rolled_back=fault is Fault.ROLLED_BACK)
        except ConflictError as error:
            if error.code not in ("batch_gap", "unknown_epoch"):
                raise
            self.run(edge.outgoing.begin_anew())
            return True
        if fault is Fault.TWICE:
            reply = self._receive(batch)
        if reply is not None and fault is not Fault.REPLY_LOST:
            self._take_answer(edge, batch, reply)
        return True

    def push_again(self, at: int) -> None:
        """A batch that the network held back arrives, and the reply to it."""
        if self._batches:
            edge, batch = self._batches[at % len(self._batches)]
            reply = self._receive(batch)
            if reply is not None:
                self._take_answer(edge, batch, reply)

    def pull(self, edge: Edge, fault: Fault = Fault.NONE, limit: int = 3) -> bool:
        """Ask for a page and take it, at once or later; whether there is more."""
        here = self.run(edge.documents.position())
        try:
            with self.engine.begin() as connection:
                page = tombstones.pull(connection, edge.device_id, here.cursor, limit, utc_now(), here.snapshot)
        except GoneError:
            self.run(edge.documents.read_anew(Sweep.ALL))
            return True
        page = PullResponse.model_validate_json(page.model_dump_json())
        if fault is Fault.NONE or fault is Fault.TWICE:
            for _ in range(2 if fault is Fault.TWICE else 1):
                self._take_page(edge, page, here.cursor)
        elif fault is Fault.REPLY_LOST:
            self._pages.append(_Page(edge, here.cursor, page))
        return page.has_more

    def page_arrives(self, at: int) -> None:
        """A reply to a pull that the network held back arrives."""
        if self._pages:
            held = self._pages.pop(at % len(self._pages))
            self._take_page(held.edge, held.page, held.asked_from)

    def heal(self) -> None:
        """Exchange without faults until nothing is left to be said."""
        for _ in range(_MAX_ROUNDS):
            is_quiet = True
            for edge in self.edges:
                while self.push(edge):
                    is_quiet = False
                before = self.run(edge.documents.position())
                while self.pull(edge):
                    pass
                is_quiet = is_quiet and before == self.run(edge.documents.position())
            if is_quiet:
                return
        raise AssertionError("I1: the exchange does not come to rest")

    def _take_answer(self, edge: Edge, batch: Batch, reply: PushResponse) -> None:
        self.run(edge.outgoing.acknowledge(batch.batch_seq, reply))
        self._note_read(edge)

    def _begin_epoch(self, edge: Edge) -> bool:
        """Ask for an epoch where the device has none; whether it had none."""
        if self.run(edge.outgoing.epoch()) is not None:
            return False
        asked = self.run(edge.outgoing.epoch_request())
        with self.engine.begin() as connection:
            epoch = devices.begin_epoch(connection, edge.device_id, asked)
            server_epoch = server.identity(connection).server_epoch
        self.run(edge.outgoing.begin_epoch(epoch, server_epoch))
        return True

    def _take_page(self, edge: Edge, page: PullResponse, asked_from: int) -> None:
        if self.run(edge.outgoing.meet(page.server_epoch)):
            return
        self.run(edge.documents.apply(page, asked_from))
        self._note_read(edge)

    def _note_read(self, edge: Edge) -> None:
        for kept in self.run(edge.database.run(_all_kept)):
            if not kept.is_dirty:
                self.read[edge.device_id, kept.scope, kept.key] = kept.document.vv

    def _receive(self, batch: Batch, *, is_rolled_back: bool = False) -> PushResponse | None:
        payload = decode_body(
            batch.body, encoding=batch.headers.get("Content-Encoding"), digest=batch.headers["Content-Digest"],
            max_bytes=_MAX_BYTES,
        )  # fmt: skip
        request = parse_with(read_batch, payload)
        with self.engine.connect() as connection:
            answer = gate.apply_batch(connection, request, batch.headers["Content-Digest"], utc_now(), self.rules)
            if is_rolled_back:
                return None
            connection.commit()
        return PushResponse.model_validate_json(answer.model_dump_json())

    @staticmethod
    def _refuse(batch: Batch, body: bytes) -> None:
        try:
            decode_body(body, encoding=None, digest=batch.headers["Content-Digest"], max_bytes=_MAX_BYTES)
        except MalformedError:
            return
        raise AssertionError("I18: a damaged batch was taken")
