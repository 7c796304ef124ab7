"""`primespark query` on a real store: what a person is shown, and what other programs read."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from primespark.cli.main import app
from primespark.cli.query import sparkline
from primespark.errors import InvalidInputError
from primespark.store import samples
from primespark.store.samples import Sample

T0 = datetime(2026, 3, 28, tzinfo=UTC)
RANGE = ["--from", "2026-03-28", "--to", "2026-03-28T04:00"]


@pytest.fixture
def filled(store_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", store_engine.url.render_as_string(hide_password=False))
    monkeypatch.setenv("COLUMNS", "160")
    rows = [
        Sample("power_watts", device, "test", {"room": room}, T0 + timedelta(hours=hour), 0, float(hour * scale))
        for device, room, scale in (("edge-1", "hall", 1), ("edge-2", "[red]lab", 10))
        for hour in (0, 1, 3)
    ]
    with store_engine.begin() as connection:
        samples.insert(connection, rows)
    return store_engine


def ask(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["query", *arguments])


def table(result: Result) -> list[list[str]]:
    assert result.exit_code == 0, result.output
    rows = (line.strip("│┃ ") for line in result.output.splitlines() if line.startswith(("│", "┃")))
    return [[cell.strip() for cell in row.replace("┃", "│").split("│")] for row in rows]


def test_each_group_has_a_line_with_its_course(filled: Engine) -> None:
    shown = ask("power_watts", *RANGE, "--by", "hour", "--group-by", "labels.room", "--agg", "sum", "--agg", "p50")
    title = "power_watts, 2026-03-28 00:00:00 UTC to 2026-03-28 04:00:00 UTC, by 1 h"
    assert title in " ".join(shown.output.split())
    assert table(shown) == [
        ["labels.room", "", "course", "least", "most", "last"],
        ["[red]lab", "sum", "▁▃ █", "0", "30", "30"],
        ["[red]lab", "p50", "▁▃ █", "0", "30", "30"],
        ["hall", "sum", "▁▃ █", "0", "3", "3"],
        ["hall", "p50", "▁▃ █", "0", "3", "3"],
    ]


def test_programs_read_csv_and_json(filled: Engine) -> None:
    asked = ("power_watts", *RANGE, "--by", "none", "--agg", "max", "--agg", "count", "--where", "labels.room!=hall")
    (row,) = csv.DictReader(io.StringIO(ask(*asked, "--format", "csv").stdout))
    assert row == {"time": "2026-03-28T00:00:00.000000Z", "max": "30.0", "count": "3"}
    told = json.loads(ask(*asked, "--format", "json").stdout)
    assert told == {"series": [{"group": {}, "points": [["2026-03-28T00:00:00.000000Z", 30.0, 3]]}]}


def test_times_are_of_the_zone_that_is_named(filled: Engine) -> None:
    asked = (
        "power_watts",
        "--tz",
        "Asia/Tokyo",
        "--by",
        "day",
        "--agg",
        "count",
        "--format",
        "json",
        "--where",
        "source=test",
    )
    told = json.loads(ask(*asked, "--from", "2026-03-28T10:00", "--to", "2026-03-28T11:00:00+0100").stdout)
    assert told["series"][0]["points"] == [["2026-03-27T15:00:00.000000Z", 4]]


def test_without_a_metric_it_shows_what_there_is(filled: Engine) -> None:
    assert table(ask(*RANGE))[1:] == [
        ["power_watts", "edge-1", "3", "3", "2026-03-28 03:00:00 UTC", "0", "1.33333", "3", "2.8", "0"],
        ["power_watts", "edge-2", "3", "30", "2026-03-28 03:00:00 UTC", "0", "13.3333", "30", "28", "0"],
    ]
    nothing = ask("unknown", *RANGE)
    assert "no samples of unknown" in nothing.output
    assert "primespark query, without a metric, shows what there is" in nothing.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["m", "--agg", "mode"], "unknown_aggregation"),
        (["m", "--agg", "p95", "--agg", "p99"], "unknown_aggregation"),
        (["m", "--agg", "p101"], "bad_percentile"),
        (["m", "--by", "fortnight"], "bad_granularity"),
        (["m", "--tz", "Mars"], "unknown_time_zone"),
        (["m", "--where", "=x"], "bad_filter"),
        (["m", "--group-by", "value"], "unknown_field"),
        (["m", "--from", "2026-03-29", "--to", "2026-03-28"], "bad_time_range"),
        (["m", "--last", "soon"], "invalid_input"),
        (["m", "--last", "24h", "--from", "2026-03-28"], "bad_time_range"),
        (["--format", "csv"], "invalid_input"),
    ],
)
def test_what_cannot_be_asked_is_told(filled: Engine, arguments: list[str], code: str) -> None:
    refused = ask(*arguments).exception
    assert isinstance(refused, InvalidInputError)
    assert (refused.code, bool(refused.remedy)) == (code, True)


@given(st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), max_size=200), st.integers(1, 80))
def test_a_line_is_never_wider_and_is_blank_where_nothing_is(values: list[float], width: int) -> None:
    line = sparkline(values, width=width)
    assert len(line) == min(len(values), width)
    if len(values) <= width:
        assert [cell == " " for cell in line] == [math.isnan(value) for value in values]
        known: list[Any] = [(value, cell) for value, cell in zip(values, line, strict=True) if cell != " "]
        assert [cell for _, cell in sorted(known)] == sorted(cell for _, cell in known)


def test_a_label_does_not_steer_the_terminal(filled: Engine) -> None:
    labels = {"room": "\x1b[2J\x9b1A\nhall\u202e"}
    with filled.begin() as connection:
        samples.insert(connection, [Sample("volts", "edge-1", "test", labels, T0, 0, 1.0)])
    shown = ask("volts", *RANGE, "--group-by", "labels.room")
    assert table(shown)[1][0].replace("\N{REPLACEMENT CHARACTER}", "?") == "?[2J?1A?hall?"
    assert all(character.isprintable() for character in shown.output.replace("\n", ""))
