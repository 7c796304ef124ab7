"""Blobs that nothing names any more, removed after a while.

What names a blob: facts, documents, outputs of pipeline stages, the manifests these name, and for a while the device
that wrote it. Blobs lie beside the database, so nothing here is one transaction with it; instead a blob is kept from
the moment it is put, which is before it is named, and each time it is found to be named its age begins anew.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from sqlalchemy import Connection, select, text

from primespark.core.manifests import MAX_MANIFEST_BYTES
from primespark.store import uploads
from primespark.store.blobs import BlobStore
from primespark.store.schema import round_

# How exactly the age of a blob in use is kept.
_KEEP_INTERVAL = timedelta(days=1)
_NAME = re.compile(rb"[0-9a-f]{64}")


def named(connection: Connection) -> set[str]:
    """SHA-256 in documents and outputs of pipeline stages, of facts, of what devices wrote; be there blobs or not."""
    found = connection.execute(
        text(
            "SELECT DISTINCT match[1] FROM ("
            "SELECT value AS content FROM sync.document UNION ALL SELECT output FROM control.pipeline_stage"
            ") AS naming, regexp_matches(content::text, '[0-9a-f]{64}', 'g') AS match"
            " UNION SELECT sha256 FROM sync.blob UNION SELECT blob FROM sync.fact WHERE blob IS NOT NULL"
        )
    )
    return set(found.scalars())


def collect(connection: Connection, blobs: BlobStore, now: datetime, age: timedelta) -> int:
    """Remove blobs that nothing has named for `age`; how many. Those who do so at once follow one another."""
    connection.execute(select(round_.c.log_seq).with_for_update())
    blobs.tidy((now - _KEEP_INTERVAL).timestamp())
    _drop_chunks(connection, uploads.Chunks(blobs), (now - _KEEP_INTERVAL).timestamp())
    kept = dict(blobs.kept_since())
    in_use = _with_manifests(named(connection) & kept.keys(), kept, blobs)
    for sha256 in in_use:
        if kept[sha256] < (now - _KEEP_INTERVAL).timestamp():
            blobs.keep(sha256)
    before = (now - age).timestamp()
    old = [sha256 for sha256, since in kept.items() if sha256 not in in_use and since < before]
    return sum(blobs.remove_older(sha256, before) for sha256 in old)


def _drop_chunks(connection: Connection, chunks: uploads.Chunks, before: float) -> None:
    """Remove chunks that came before this time and that no upload names."""
    expected = uploads.expected(connection)
    for device_id, sha256, since in list(chunks.kept_since()):
        if since < before and (device_id, sha256) not in expected:
            chunks.discard(device_id, {sha256})


def _with_manifests(names: set[str], kept: dict[str, float], blobs: BlobStore) -> set[str]:
    """These blobs, and all that those of them name which are small enough to be manifests."""
    found, to_read = set(names), set(names)
    while to_read:
        path = blobs.path(to_read.pop())
        try:
            content = path.read_bytes() if path.stat().st_size <= MAX_MANIFEST_BYTES else b""
        except FileNotFoundError:
            continue
        more = {name.decode() for name in _NAME.findall(content)} & kept.keys() - found
        found |= more
        to_read |= more
    return found
