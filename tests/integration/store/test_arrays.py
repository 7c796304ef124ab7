"""Array literals as PostgreSQL reads them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from primespark.core.values import LARGEST_NUMBER
from primespark.store import arrays

_zones = st.sampled_from([UTC, timezone(timedelta(hours=23, minutes=59)), timezone(-timedelta(hours=16))])
_laws = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _read(engine: Engine, literal: str, kind: str) -> list[Any]:
    with engine.connect() as connection:
        found: list[Any] = connection.execute(text(f"SELECT CAST(:given AS {kind}[])"), {"given": literal}).scalar_one()
    return found


@_laws
@given(st.lists(st.floats(-LARGEST_NUMBER, LARGEST_NUMBER) | st.sampled_from([None, -0.0, 5e-324, 1e-5, 1e16])))
def test_numbers_are_read_exactly(store_engine: Engine, values: list[float | None]) -> None:
    assert list(map(repr, _read(store_engine, arrays.numbers(values), "float8"))) == list(map(repr, values))


@_laws
@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_whole_numbers_are_read_exactly(store_engine: Engine, values: list[int]) -> None:
    assert _read(store_engine, arrays.numbers(values), "bigint") == values


@_laws
@given(st.lists(st.datetimes(datetime(1970, 1, 2), datetime(8999, 12, 30), timezones=_zones)))  # noqa: DTZ001
def test_moments_are_read_exactly(store_engine: Engine, times: list[datetime]) -> None:
    twice = [time for time in times for _ in range(2)]
    assert _read(store_engine, arrays.moments(twice), "timestamptz") == twice
