"""The newest value is that of the newest sample, in whatever order they came."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from primespark.store import samples
from primespark.store.analytics.latest import latest
from primespark.store.analytics.selection import Filter, Op
from primespark.store.samples import Sample
from tests.helpers import rounds

T0 = datetime(2026, 3, 27, tzinfo=UTC)


rows = st.lists(
    st.tuples(
        st.integers(0, 5), st.integers(0, 2), st.sampled_from("ab"), st.sampled_from(["", "x", "y"]),
        st.none() | st.floats(-1e6, 1e6),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=rounds(40, 2000), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(rows, max_size=4), st.sampled_from([[], ["device_id"], ["labels.room"], ["device_id", "labels.room"]]))
def test_it_is_the_one_after_all_others(law_engine: Engine, history: list[Any], group_by: list[str]) -> None:
    with law_engine.begin() as connection:
        connection.execute(text("TRUNCATE metrics.sample_standard, metrics.last_sample, metrics.dirty"))
    kept: dict[tuple[str, str, datetime, int], float | None] = {}
    for batch in history:
        given_rows = [
            Sample(
                "m", device, "test", {"room": room} if room else {}, T0 + timedelta(seconds=second), seq, value,
                None if value is not None else "sensor_failed",
            )
            for second, seq, device, room, value in batch
        ]  # fmt: skip
        with law_engine.begin() as connection:
            samples.insert(connection, given_rows)
        for row in given_rows:
            kept.setdefault((row.device_id, row.labels.get("room", ""), row.time, row.seq), row.value)
    with law_engine.begin() as connection:
        found = latest(connection, ["m"], [Filter("device_id", Op.IN, ["a", "b"])], group_by)
    told = {tuple(one.group.values()): list(one.points()) for one in found}
    expected: dict[tuple[str | None, ...], list[tuple[datetime, int, float]]] = {}
    for (device, room, time, seq), value in kept.items():
        if value is not None:
            fields = {"device_id": device, "labels.room": room or None}
            expected.setdefault(tuple(fields[name] for name in group_by), []).append((time, seq, value))
    assert told.keys() == expected.keys()
    for group, values in expected.items():
        ((time, (value,)),) = told[group]
        newest = max((time, seq) for time, seq, _ in values)
        # Of two series with the same moment and number either may stand.
        assert (time, value) in [(time, value) for time, seq, value in values if (time, seq) == newest]
