"""What `primespark sync status` says of a device that cannot reach its cloud, and of one that drains."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console

from primespark.cli.sync_status import print_sync

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def said(**changed: Any) -> str:
    push = {"pending": 0, "records": 0, "last_at": None, "records_per_s": 0.0, "eta_s": None, **changed.pop("push", {})}
    status = {
        "phase": "online", "code": None, "cause": None, "remedy": None, "push": push,
        "pull": {"last_at": None}, "last_contact_at": None, "clock_offset_s": None, "link": None,
    } | changed  # fmt: skip
    stream = {
        "priority": "low",
        "pending": push["pending"],
        "acknowledged_seq": 41,
        "is_behind": push["pending"] > 5000,
    }
    queue = {"bytes": 2048, "dead_letters": 0, "streams": {"telemetry": stream}}
    output = io.StringIO()
    print_sync(Console(file=output, width=120), status, queue, NOW)
    return " ".join(output.getvalue().split())


def test_without_a_link_it_says_why_and_what_waits() -> None:
    since = (NOW - timedelta(hours=5)).isoformat()
    text = said(
        phase="offline", code="not_connected", cause="no answer", remedy="check the link", last_contact_at=since,
        link={"state": "not_connected", "since": since}, push={"pending": 12},
    )  # fmt: skip
    for words in (
        "Synchronisation: offline", "not_connected: no answer", "check the link", "not_connected, for 5 h", "5 h ago",
        "12 facts, 2 KiB", "not while nothing goes", "never since the start",
    ):  # fmt: skip
        assert words in text
    assert "telemetry │ low │ 12 │ 41" in text


def test_a_backlog_that_drains_has_a_time_left() -> None:
    text = said(push={"pending": 90_000, "records_per_s": 500.0, "eta_s": 180.0}, clock_offset_s=-3.25)
    for words in ("500.0 records/s", "3 min at this pace", "90000 (backlog)", "-3.2 s against"):
        assert words in text


def test_where_nothing_waits_there_is_one_table() -> None:
    text = said()
    assert "What waits" not in text
    assert "done in" not in text
