"""A batch into PostgreSQL, as the gate takes it, against a bare upsert of the same rows.

Both are one transaction, committed to the disk, into tables with the same columns and key, in turns. The upsert passes
its columns as literals of arrays, which is the fastest form of it: as the driver writes lists, it takes half as long
again. The gate beside that unpacks, checks the digest and each record, logs, and keeps its answer.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

from benchmarks.processes import postgres
from benchmarks.result import Result
from primespark.core.clock import utc_now
from primespark.core.encoding import decode_body, encode_body
from primespark.core.web.bodies import parse_with
from primespark.store import arrays, database, devices, gate
from primespark.sync.batches import read_batch

RECORDS = 1000
ROUNDS = 15
GOAL = 0.6
DEVICE = "edge-1"
_UPSERT = """
INSERT INTO bare (device_id, epoch, batch_seq, stream, seq, data_class, time, boot_id, monotonic_ns, value)
SELECT :device_id, 1, :batch_seq, 'inference_results', given.seq, given.data_class, given.time, :boot, given.seq,
    CAST(given.text AS jsonb)
FROM unnest(CAST(:seqs AS bigint[]), CAST(:classes AS text[]), CAST(:times AS timestamptz[]), CAST(:values AS text[]))
    AS given (seq, data_class, time, text)
ON CONFLICT (device_id, epoch, stream, seq) DO UPDATE SET value = excluded.value
"""


def run() -> Iterator[Result]:
    """Records a second of both."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as folder, ExitStack() as stack:
        engine = database.connect(stack.enter_context(postgres(Path(folder))))
        database.migrate(engine)
        stack.callback(engine.dispose)
        pushed, direct = _measure(engine)
    ratio = pushed / direct
    yield Result(
        area="ingest", name=f"a batch of {RECORDS} inference results through the gate", value=pushed,
        unit="records/s", against="an upsert of the same rows by unnest", reference=direct, ratio=ratio,
        goal=f">= {GOAL}", ok=ratio >= GOAL,
    )  # fmt: skip


def _measure(engine: Engine) -> tuple[float, float]:
    with engine.begin() as connection:
        token = devices.create_token(connection, 1, timedelta(hours=1))
        devices.enrol(connection, token, DEVICE, {}, {})
        connection.execute(text("CREATE TABLE bare (LIKE sync.fact INCLUDING ALL)"))
    pushed, direct = [], []
    for number in range(1, ROUNDS + 1):
        records = [_record((number - 1) * RECORDS + at) for at in range(1, RECORDS + 1)]
        head = {"v": 1, "replica_id": DEVICE, "epoch": 1, "batch_seq": number, "hlc": f"1790000000000-0000-{DEVICE}"}
        body, headers = encode_body(json.dumps(head | {"records": records}).encode())
        started = time.perf_counter()
        _push(engine, body, headers)
        pushed.append(RECORDS / (time.perf_counter() - started))
        started = time.perf_counter()
        _upsert(engine, number, records)
        direct.append(RECORDS / (time.perf_counter() - started))
    return statistics.median(pushed), statistics.median(direct)


def _record(seq: int) -> dict[str, Any]:
    value = {"model": "coco-ssd", "frame": f"frame-{seq}", "latency_ms": 20.5, "predictions": [{"label": "cup"}]}
    return {
        "data_class": "inference_results", "op": "append", "stream": "inference_results", "seq": seq,
        "time": "2026-03-01T12:00:00.000000Z", "boot_id": "boot", "monotonic_ns": seq, "value": value,
    }  # fmt: skip


def _push(engine: Engine, body: bytes, headers: dict[str, str]) -> None:
    payload = decode_body(
        body, encoding=headers["Content-Encoding"], digest=headers["Content-Digest"], max_bytes=10_000_000
    )
    request = parse_with(read_batch, payload)
    with engine.begin() as connection:
        gate.apply_batch(connection, request, headers["Content-Digest"], utc_now())


def _upsert(engine: Engine, number: int, records: list[dict[str, Any]]) -> None:
    with engine.begin() as connection:
        connection.execute(
            text(_UPSERT),
            {
                "device_id": DEVICE, "boot": "boot", "batch_seq": number,
                "seqs": arrays.numbers([record["seq"] for record in records]),
                "classes": _texts([record["data_class"] for record in records]),
                "times": _texts([record["time"] for record in records]),
                "values": _texts([json.dumps(record["value"]) for record in records]),
            },
        )  # fmt: skip


def _texts(values: list[str]) -> str:
    quoted = [value.replace("\\", "\\\\").replace('"', '\\"') for value in values]
    return '{"' + '","'.join(quoted) + '"}'
