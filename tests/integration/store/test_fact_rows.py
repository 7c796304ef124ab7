"""Rows of facts as COPY writes them: whatever a fact may hold comes back as it was."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from primespark.core.values import storable_json
from primespark.errors import UnavailableError
from primespark.store import fact_rows
from primespark.sync.records import Fact, Quality
from tests.integration.store.builders import fact

_zones = (
    UTC,
    timezone(-timedelta(hours=23, minutes=59)),
    timezone(timedelta(seconds=19_815)),
    ZoneInfo("Asia/Kolkata"),
)
_characters = st.characters(codec="utf-8", exclude_characters="\x00") | st.sampled_from("\\\t\n\r\b\f\v\x7f\u2028N.\"'")
_texts = st.text(_characters, max_size=8) | st.sampled_from([r"\N", r"\.", "", "\\", "\\\\n", "\t"])
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_texts, inner, max_size=3),
    max_leaves=5,
)
_facts = st.builds(
    lambda time, boot_id, monotonic_ns, quality, value, stream: Fact.model_validate(
        {
            "data_class": "inference_results", "stream": stream, "seq": 1, "time": time, "boot_id": boot_id,
            "monotonic_ns": monotonic_ns, "quality": quality, "value": value,
        },
        strict=False,
    ),
    st.datetimes(datetime(1970, 1, 2), datetime(8999, 12, 30), timezones=st.sampled_from(_zones)),  # noqa: DTZ001
    _texts,
    st.integers(0, 2**63 - 1),
    st.none() | st.sampled_from(Quality),
    st.dictionaries(_texts, _values, max_size=3),
    st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,9}", fullmatch=True),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_facts, max_size=4))
def test_what_is_written_is_read(store_engine: Engine, facts: list[Fact]) -> None:
    numbered = [known.model_copy(update={"seq": seq}) for seq, known in enumerate(facts, 1)]
    with store_engine.connect() as connection:
        fact_rows.insert(connection, "edge-1", 3, 7, [(known, storable_json(known.value)) for known in numbered])
        rows = connection.execute(
            text(
                "SELECT stream, seq, data_class, time, boot_id, monotonic_ns, quality, device_id, epoch, batch_seq,"
                " CAST(value AS text) FROM sync.fact ORDER BY seq"
            )
        )
        stored = [(*row[:-1], _exact(row[-1])) for row in rows]
        connection.rollback()
    assert stored == [
        (
            known.stream, known.seq, known.data_class, known.time, known.boot_id, known.monotonic_ns, known.quality,
            "edge-1", 3, 7, _exact(json.dumps(known.value)),
        )
        for known in numbered
    ]  # fmt: skip


def _exact(value: str) -> Any:
    # A number has all its digits in the store: 2e16 is there as an integer.
    return json.loads(value, parse_float=Decimal, parse_int=Decimal)


def _insert(connection: Any) -> None:
    fact_rows.insert(connection, "edge-1", 1, 1, [(fact(1), "{}")])


def test_a_connection_that_broke_is_an_unavailable_store(store_engine: Engine) -> None:
    with store_engine.connect() as connection:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        with store_engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        with pytest.raises(UnavailableError):
            _insert(connection)
    with store_engine.connect() as connection:
        _insert(connection)


def test_rows_that_cannot_be_are_no_reason_to_send_them_again(store_engine: Engine) -> None:
    with store_engine.connect() as connection:
        fact_rows.insert(connection, "edge-1", 1, 1, [])
        _insert(connection)
        with pytest.raises(psycopg2.errors.UniqueViolation):
            _insert(connection)
