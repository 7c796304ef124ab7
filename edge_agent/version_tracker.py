"""Which version of each record the device has; kept in its database, as documents that both sides may write."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Mapping, Sequence
from typing import Any

from edge_agent.database import Database
from edge_agent.device_clock import DeviceClock
from edge_agent.documents import Documents, load_kept
from edge_agent.sync_records import DataType, SyncRecord, TrackedVersion, is_waited_for
from primespark.errors import OverloadedError
from primespark.sync.documents import Document, Order, compare

MAX_RECORDS = 1000
_PREFIX, _END = "records/", "records0"
_FIELD = "record"
_LOOK_S = 0.1


class VersionTracker:
    """Versions of records of one device.

    Args:
        database: The device's.
        device_id: Its name as a replica.
        clock: Gives what is written its time.
    """

    def __init__(self, database: Database, device_id: str, clock: DeviceClock) -> None:
        self._database = database
        self._device_id = device_id
        self._documents = Documents(database, device_id, clock=clock)

    @staticmethod
    def compare(left: Mapping[str, int], right: Mapping[str, int]) -> Order:
        """The causal order of two version vectors; `concurrent` where neither writer had seen the other."""
        return compare(left, right)

    async def get(self, data_type: DataType, record_id: str) -> TrackedVersion | None:
        """What stands of a record; None for one that is not known, was deleted, or was made something else."""
        kept = await self._database.run(
            lambda connection: load_kept(connection, self._device_id, key_of(data_type, record_id))
        )
        record = _described(kept.document) if kept is not None else None
        return TrackedVersion(record, kept.document.vv, kept.is_dirty) if kept and record else None

    async def settled(self, records: Sequence[SyncRecord], timeout_s: float) -> list[TrackedVersion | None]:
        """What stands of each record, once none is waited for or the time is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            standing = [await self.get(record.data_type, record.record_id) for record in records]
            if not any(map(is_waited_for, records, standing)) or time.monotonic() >= deadline:
                return standing
            # What another process writes to the file wakes nobody here.
            await asyncio.sleep(_LOOK_S)

    async def update(self, record: SyncRecord) -> bool:
        """Take a version, for the cloud to have it; False for one that is known, or older than what stands.

        Raises:
            InvalidInputError: It could not travel.
            OverloadedError: Code `too_many_records`.
        """
        given, key = record.to_json(), key_of(record.data_type, record.record_id)
        await self._database.run(lambda connection: self._check_room(connection, key))
        is_new = False

        def change(before: Document) -> dict[str, Any]:
            nonlocal is_new
            known = _described(before)
            is_new = known is None or (known.to_json() != given and known.version <= record.version)
            # A list is one leaf: where two versions meet, one of them stands whole.
            return {**before.value, _FIELD: [given]} if is_new else before.value

        await self._documents.change(key, change)
        return is_new

    def _check_room(self, connection: sqlite3.Connection, key: str) -> None:
        count, is_known = connection.execute(
            "SELECT count(*), coalesce(sum(key = ?), 0) FROM document WHERE scope = ? AND key >= ? AND key < ?",
            (key, self._device_id, _PREFIX, _END),
        ).fetchone()
        if count >= MAX_RECORDS and not is_known:
            raise OverloadedError(
                f"{MAX_RECORDS} records are tracked already",
                remedy="queue what is only ever added to as operations",
                code="too_many_records",
            )


def key_of(data_type: DataType, record_id: str) -> str:
    """The key of a record's document, which strategies go by."""
    return f"{_PREFIX}{data_type}/{record_id}"


def _described(document: Document) -> SyncRecord | None:
    try:
        (described,) = document.value[_FIELD]
        return SyncRecord.from_json(described)
    except (KeyError, TypeError, ValueError):
        return None
