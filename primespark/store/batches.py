"""What the store knows of a device's batches, each question and each note in one statement.

A batch of a few facts is the usual one, and asking is most of what it costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from primespark.store import arrays
from primespark.sync.records import PushResponse

# A device sends a batch only after the answer to the one before; the rest tells an old copy of it from a stranger.
KEPT_ANSWERS = 100

_LOCK = text("SELECT epoch FROM sync.device WHERE device_id = :device_id AND key_sha256 IS NOT NULL FOR UPDATE")
_FIND = text(
    "SELECT known.digest, known.response,"
    " (SELECT coalesce(max(batch_seq), 0) FROM sync.batch WHERE device_id = :device_id AND epoch = :epoch) AS last,"
    " (SELECT jsonb_object_agg(stream, seq) FROM sync.watermark WHERE device_id = :device_id AND epoch = :epoch)"
    " AS watermarks"
    " FROM (SELECT) AS one LEFT JOIN sync.batch AS known"
    " ON (known.device_id, known.epoch, known.batch_seq) = (:device_id, :epoch, :batch_seq)"
)
_MOVE = text(
    "WITH old AS (DELETE FROM sync.batch WHERE device_id = :device_id AND epoch = :epoch AND batch_seq <= :oldest)"
    " INSERT INTO sync.watermark (device_id, epoch, stream, seq) SELECT :device_id, :epoch, given.*"
    " FROM unnest(CAST(:streams AS text[]), CAST(:seqs AS bigint[])) AS given"
    " ON CONFLICT (device_id, epoch, stream) DO UPDATE SET seq = excluded.seq"
)
_KEEP = text(
    "INSERT INTO sync.batch (device_id, epoch, batch_seq, digest, response, received_at)"
    " VALUES (:device_id, :epoch, :batch_seq, :digest, CAST(:response AS jsonb), :received_at)"
)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known when a batch comes.

    Attributes:
        digest: Of the batch of that number, if it was applied; None otherwise.
        response: The answer it got.
        last: Number of the newest batch of the epoch; 0 before the first.
        watermarks: Of each stream of the epoch, the highest seq received.
    """

    digest: str | None
    response: dict[str, Any] | None
    last: int
    watermarks: dict[str, int]


def lock_device(connection: Connection, device_id: str) -> int | None:
    """The device's epoch, None if there is no such device; until commit its batches follow one another."""
    epoch: int | None = connection.execute(_LOCK, {"device_id": device_id}).scalar()
    return epoch


def find(connection: Connection, device_id: str, epoch: int, batch_seq: int) -> Known:
    """What is known; ask after `lock_device`, not with it: what is asked with it was true before it waited."""
    row = connection.execute(_FIND, {"device_id": device_id, "epoch": epoch, "batch_seq": batch_seq}).one()
    return Known(row.digest, row.response, row.last, row.watermarks or {})


def move_watermarks(
    connection: Connection, device_id: str, epoch: int, batch_seq: int, moved: Mapping[str, int]
) -> None:
    """Note how far streams have come, and let the answer go that is too old for the device to ask for."""
    of_device = {"device_id": device_id, "epoch": epoch, "oldest": batch_seq - KEPT_ANSWERS}
    connection.execute(_MOVE, of_device | {"streams": list(moved), "seqs": arrays.numbers(moved.values())})


def keep_answer(
    connection: Connection, device_id: str, epoch: int, digest: str, response: PushResponse, received_at: datetime
) -> None:
    """Keep the answer to a batch."""
    connection.execute(
        _KEEP,
        {
            "device_id": device_id, "epoch": epoch, "batch_seq": response.ack_batch_seq, "digest": digest,
            "response": response.model_dump_json(), "received_at": received_at,
        },
    )  # fmt: skip
