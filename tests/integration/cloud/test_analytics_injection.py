"""Names, labels and granularities that would be SQL, JSON, formats or paths, through every door of analytics."""

from __future__ import annotations

import csv
import io
from typing import Any

from sqlalchemy import text

from tests.integration.cloud.test_analytics import DAY, ask, metric, put, summary
from tests.integration.cloud.test_gate import Gate, gate

__all__ = ["gate"]
HOSTILE = [
    "x'; DROP TABLE metrics.sample; --", "x' OR '1'='1", "$$; SELECT 1; $$", 'a"b\\', "%s %(series)s %%", ":series",
    ":metric_1 :groups", '{"a": "b"}', "../../etc/passwd", "ünï\u202e\U0001f600", "\ttab\nline", "=1+1", "(SELECT 1)",
]  # fmt: skip
NO_GRANULARITIES = ["hour'", "HOUR", " hour", "1 hour", "hour\x00", "NaN", "Infinity", ""]


def contents(gate: Gate) -> list[tuple[Any, ...]]:
    parts = "SELECT device_id, source, labels, value FROM metrics.sample JOIN metrics.series USING (series_id)"
    with gate.cloud.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(parts + " ORDER BY value"))]


async def test_names_and_labels_are_compared_and_nothing_else(gate: Gate) -> None:
    hosts = dict(enumerate(HOSTILE))
    await put(gate, *(metric(1, at, device_id=host, source=host, labels={host: host}) for at, host in hosts.items()))
    assert contents(gate) == [(host, host, {host: host}, at) for at, host in hosts.items()]
    for at, host in hosts.items():
        selection = {
            "group_by": ["device_id", "source", f"labels.{host}"],
            "filters": [
                [f"labels.{host}", "=", host], [f"labels.{host}", "exists", True], [f"labels.{host}", "in", [host]],
                ["device_id", "in", [host, "x"]], ["source", "!=", f"{host}x"],
            ],
        }  # fmt: skip
        expected = [{"device_id": host, "source": host, f"labels.{host}": host}]
        asked = await ask(gate, granularity="day", **selection)
        assert [one["group"] for one in asked.json()["series"]] == expected, asked.text
        assert asked.json()["series"][0]["points"] == [["2026-03-28T00:00:00.000000Z", at]]
        newest = await gate.client.post(
            "/api/v1/analytics/latest", json={"metric_name": "power_watts", **selection}, headers=gate.admin
        )
        assert [one["group"] for one in newest.json()["series"]] == expected, newest.text
    told = await summary(gate, start=DAY[0], end=DAY[1])
    assert sorted(one["device_id"] for one in told.json()["items"]) == sorted(HOSTILE)
    query = {"metric_name": "power_watts", "aggregation": "sum", "time_range": DAY, "granularity": "day"}
    headers = {**gate.admin, "Accept": "text/csv"}
    table = await gate.client.post("/api/v1/analytics/query", json=query | {"group_by": ["source"]}, headers=headers)
    rows = list(csv.DictReader(io.StringIO(table.text, newline="")))
    # A table's program takes none of them for a formula (OWASP, CSV injection).
    assert {row["source"] for row in rows} == {f"'{host}" if host[0] in "=\t" else host for host in HOSTILE}


async def test_what_is_no_name_or_granularity_is_refused_and_changes_nothing(gate: Gate) -> None:
    await put(gate, metric(1, 1.5))
    before = contents(gate)
    for hostile in [*HOSTILE, *NO_GRANULARITIES]:
        granularities: list[Any] = [
            hostile, [hostile], {"unit": hostile}, {"unit": "day", "tz": hostile}, {"unit": "hour", hostile: 1},
            {"every_s": hostile}, {"every_s": 60, "tz": hostile}, {hostile: 60},
        ]  # fmt: skip
        changes = [{"granularity": granularity} for granularity in granularities]
        if hostile not in NO_GRANULARITIES:
            changes += [{"metric_name": hostile}, {"filters": [["device_id", hostile, "x"]]}, {"cursor": hostile}]
            stored = metric(1, 1.0, metric_name=hostile)
            refused = await gate.client.post("/api/v1/analytics/insert", json={"metrics": [stored]}, headers=gate.admin)
            assert refused.status_code == 422
        for change in changes:
            refused = await ask(gate, **change)
            assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json"), change
    for number in ("Infinity", "1e400", "-1", "0", "1e-320"):
        body = f'{{"metric_name": "m", "aggregation": "sum", "time_range": ["{DAY[0]}", "{DAY[1]}"], "granularity": '
        headers = {**gate.admin, "Content-Type": "application/json"}
        content = body + f'{{"every_s": {number}}}}}'
        refused = await gate.client.post("/api/v1/analytics/query", content=content, headers=headers)
        assert refused.status_code in (400, 422), number
    assert contents(gate) == before
