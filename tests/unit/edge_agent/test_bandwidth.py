"""The limit, in virtual time: never exceeded, used up, and another at other times of day."""

from __future__ import annotations

import asyncio
import heapq
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edge_agent.bandwidth import Bandwidth
from edge_agent.bandwidth_optimizer import BandwidthOptimizer
from edge_agent.fair_link import FairLink, Traffic
from edge_agent.sync_records import DataType, SyncRecord
from primespark.core.encoding import decode_body
from primespark.core.link_settings import BandwidthSettings


class Time:
    """Seconds that pass when somebody sleeps, a little longer than asked."""

    def __init__(self, late_s: list[float]) -> None:
        self.now_s, self.late_s = 1000.0, late_s or [0.0]
        self.count = 0

    async def sleep(self, seconds: float) -> None:
        self.count += 1
        self.now_s += seconds + self.late_s[self.count % len(self.late_s)]


@settings(max_examples=40, deadline=None)
@given(
    rate=st.integers(8192, 10_000_000),
    late_s=st.lists(st.floats(0, 0.02), max_size=5),
    pauses=st.lists(st.floats(0, 3), max_size=3),
)
async def test_in_any_second_at_most_a_third_more_and_in_all_what_is_allowed(
    rate: int, late_s: list[float], pauses: list[float]
) -> None:
    time = Time(late_s)
    bandwidth = Bandwidth(BandwidthSettings(bytes_per_s=rate), monotonic_s=lambda: time.now_s, sleep=time.sleep)
    sent: list[tuple[float, int]] = []
    for pause in [*pauses, 0.0]:
        time.now_s += pause
        began, body = time.now_s, bytes(int(rate * 2.5))
        got = b""
        async for piece in bandwidth.paced(body):
            sent.append((time.now_s, len(piece)))
            got += piece
        assert got == body
        assert len(body) / (time.now_s - began) >= 0.95 * rate
    for at, _ in sent:
        assert sum(size for when, size in sent if at <= when < at + 1) <= 1.3 * rate
    assert sum(size for _, size in sent) <= rate * (time.now_s - 1000.0 + 0.2)


async def test_what_is_received_waits_for_its_own_limit() -> None:
    time = Time([])
    bandwidth = Bandwidth(BandwidthSettings(bytes_per_s=10_000), monotonic_s=lambda: time.now_s, sleep=time.sleep)
    async for _ in bandwidth.paced(bytes(100_000)):
        pass
    sent_at = time.now_s
    for _ in range(10):
        await bandwidth.received(10_000)
    assert sent_at - 1000 == pytest.approx(10, rel=0.05)
    assert time.now_s - sent_at == pytest.approx(10, rel=0.05)


async def test_without_a_limit_nothing_waits() -> None:
    time = Time([])
    bandwidth = Bandwidth(BandwidthSettings(), monotonic_s=lambda: time.now_s, sleep=time.sleep)
    assert [len(piece) async for piece in bandwidth.paced(bytes(100_000))] == [65536, 34464]
    await bandwidth.received(10**9)
    assert (time.count, bandwidth.slowest, bandwidth.batch_bytes(77)) == (0, None, 77)


NIGHT = {"begin": "22:00", "end": "06:00"}
NOON = {"begin": "12:00", "end": "13:00", "bytes_per_s": 16_000}


@pytest.mark.parametrize(
    ("moment", "limit"),
    [
        ("2026-07-01T19:59:59Z", 64_000),
        ("2026-07-01T20:00:00Z", None),  # 22:00 in Berlin in summer
        ("2026-07-02T03:59:59Z", None),
        ("2026-07-02T04:00:00Z", 64_000),
        ("2026-07-01T10:30:00Z", 16_000),
        ("2026-12-01T20:30:00Z", 64_000),  # 21:30 in winter
        ("2026-12-01T21:00:00Z", None),
        ("2026-03-29T00:59:59Z", None),  # 01:59:59, the last second before 03:00
        ("2026-03-29T03:59:59Z", None),
        ("2026-03-29T04:00:00Z", 64_000),
        ("2026-10-25T04:59:59Z", None),  # 05:59:59, the second of the hour that came twice being over
        ("2026-10-25T05:00:00Z", 64_000),
    ],
)
def test_windows_go_by_the_clock_on_the_wall(moment: str, limit: int | None) -> None:
    given_settings = {"bytes_per_s": 64_000, "windows": [NIGHT, NOON], "timezone": "Europe/Berlin"}
    limited = BandwidthSettings.model_validate(given_settings)
    assert Bandwidth(limited, lambda: datetime.fromisoformat(moment)).limit() == limit
    assert Bandwidth(limited).batch_bytes(4 * 1024 * 1024) == 16_000 * 20


@given(minute=st.integers(0, 1439), begin=st.integers(0, 1439), length=st.integers(1, 1440))
def test_a_window_is_as_long_as_it_says(minute: int, begin: int, length: int) -> None:
    midnight = datetime(2026, 6, 1, tzinfo=UTC)
    begins, ends = ((midnight + timedelta(minutes=at)).strftime("%H:%M") for at in (begin, begin + length))
    window = {"begin": begins, "end": ends, "bytes_per_s": 9000}
    limited = BandwidthSettings.model_validate({"windows": [window], "timezone": "UTC"})
    limit = Bandwidth(limited, lambda: midnight + timedelta(minutes=minute)).limit()
    assert (limit == 9000) == ((minute - begin) % 1440 < length)


@pytest.mark.parametrize(
    "wrong", [{"bytes_per_s": 100}, {"windows": [{"begin": "24:00", "end": "01:00"}]}, {"timezone": "Mars/Olympus"}]
)
def test_what_is_no_limit_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BandwidthSettings.model_validate(wrong)


@given(
    minute=st.integers(0, 1439),
    windows=st.lists(st.tuples(st.integers(0, 1439), st.integers(1, 1439)), min_size=1, max_size=4),
)
async def test_what_is_low_waits_for_the_next_of_its_windows(minute: int, windows: list[tuple[int, int]]) -> None:
    midnight, time = datetime(2026, 6, 1, tzinfo=UTC), Time([])
    time.now_s = minute * 60.0
    spans = [
        dict(
            zip(("begin", "end"), (f"{at // 60 % 24:02d}:{at % 60:02d}" for at in (begin, begin + length)), strict=True)
        )
        for begin, length in windows
    ]
    told = BandwidthSettings.model_validate({"low_windows": spans, "timezone": "UTC"})
    bandwidth = Bandwidth(told, lambda: midnight + timedelta(seconds=time.now_s), lambda: time.now_s, time.sleep)
    open_minutes = {(begin + passed) % 1440 for begin, length in windows for passed in range(length)}
    assert bandwidth.may_send_low() == (minute in open_minutes)
    await bandwidth.until_low_may_go()
    wait = next(passed for passed in range(1440) if (minute + passed) % 1440 in open_minutes)
    assert time.now_s // 60 == minute + wait


class Scheduler:
    """Virtual time for many tasks: it passes when all of them wait."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Event]] = []
        self._count = 0

    async def sleep(self, seconds: float) -> None:
        self._count += 1
        wakes = asyncio.Event()
        heapq.heappush(self._sleepers, (self.now_s + seconds, self._count, wakes))
        await wakes.wait()

    async def run_until(self, end_s: float) -> None:
        while True:
            for _ in range(20):
                await asyncio.sleep(0)
            if not self._sleepers or self._sleepers[0][0] > end_s:
                return
            self.now_s, _, wakes = heapq.heappop(self._sleepers)
            wakes.set()


@settings(max_examples=30, deadline=None)
@given(
    rate=st.integers(8192, 1_000_000),
    shares=st.tuples(st.integers(1, 10), st.integers(1, 10)),
    sizes=st.tuples(st.integers(2000, 20_000), st.integers(2000, 20_000)),
    begins=st.floats(0, 20),
    senders=st.integers(1, 3),
    pays=st.booleans(),
)
async def test_a_limited_link_is_shared_by_weight_and_none_of_it_is_left(
    rate: int, shares: tuple[int, int], sizes: tuple[int, int], begins: float, senders: int, pays: bool
) -> None:
    time, piece_s = Scheduler(), sum(sizes) / rate
    begins_s = begins * piece_s
    weights = dict(zip(Traffic, shares, strict=True))
    link = FairLink(lambda: rate, "up", weights, lambda: time.now_s, time.sleep)
    done: list[tuple[float, Traffic, int]] = []

    async def send(traffic: Traffic, size: int, begin_s: float) -> None:
        await time.sleep(begin_s)
        while True:
            await (link.pay if pays else link.take)(size, traffic)
            done.append((time.now_s, traffic, size))

    tasks = [asyncio.create_task(send(Traffic.BLOBS, sizes[1], 0.0))]
    tasks += [asyncio.create_task(send(Traffic.RECORDS, sizes[0], begins_s)) for _ in range(senders)]
    both_s = 1000 + begins_s
    await time.run_until(both_s + 50 * piece_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    total = sum(size for _, _, size in done)
    assert total <= rate * (time.now_s - 1000) + (senders + 1) * max(sizes)
    assert total >= rate * (time.now_s - 1000) - (senders + 1) * max(sizes)
    # A kind alone has all of it; from when both want it, what each has had by its weight stays level.
    blobs, records = (
        [size for at, kind, size in done if kind is wanted and at > both_s]
        for wanted in (Traffic.BLOBS, Traffic.RECORDS)
    )
    level = sum(records) / weights[Traffic.RECORDS] - sum(blobs) / weights[Traffic.BLOBS]
    most = (senders + 1) * sizes[0] / weights[Traffic.RECORDS] + 2 * sizes[1] / weights[Traffic.BLOBS]
    assert abs(level) <= most


async def test_who_gives_up_its_turn_holds_up_nobody() -> None:
    time = Scheduler()
    link = FairLink(lambda: 1000, "up", dict.fromkeys(Traffic, 1), lambda: time.now_s, time.sleep)
    await link.take(1000, Traffic.RECORDS)
    waiting = [asyncio.create_task(link.take(1000, Traffic.RECORDS)) for _ in range(4)]
    await time.run_until(1000.5)
    waiting[0].cancel()
    waiting[2].cancel()
    await time.run_until(1002.5)
    assert [task.done() for task in waiting] == [True] * 4
    assert time.now_s == pytest.approx(1002)


async def test_a_program_beside_the_agent_keeps_to_the_limit_and_sends_what_matters_first() -> None:
    time = Time([])
    limited = Bandwidth(BandwidthSettings(bytes_per_s=10_000), monotonic_s=lambda: time.now_s, sleep=time.sleep)
    optimizer = BandwidthOptimizer(limited)
    for _ in range(11):
        await optimizer.throttle(10_000)
    assert time.now_s - 1000 == pytest.approx(10)
    body, headers = optimizer.compress(b"telemetry " * 1000)
    assert len(body) < 200
    assert decode_body(
        body, encoding=headers["Content-Encoding"], digest=headers["Content-Digest"], max_bytes=10_000
    ) == (b"telemetry " * 1000)
    kinds = [DataType.TELEMETRY, DataType.CONFIGURATIONS, DataType.METRICS, DataType.CONFIGURATIONS]
    records = [
        SyncRecord(f"r{number}", kind, "edge", "cloud", "", 1, datetime(2026, 1, 1, tzinfo=UTC), 9 - number)
        for number, kind in enumerate(kinds)
    ]
    assert [record.record_id for record in optimizer.prioritize(records)] == ["r3", "r1", "r2", "r0"]
