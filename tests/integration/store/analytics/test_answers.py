"""Kept answers: the same as worked out anew, whatever was late and whatever becomes of the server."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis import Redis
from sqlalchemy import Engine, event, text

from primespark.store import rollups, samples
from primespark.store.analytics import queries
from primespark.store.analytics.aggregates import Aggregation
from primespark.store.analytics.answers import Answers, SingleFlight
from primespark.store.analytics.buckets import Unit, of_unit
from primespark.store.analytics.cache import AnswerCache, NoCache, RedisCache, key_of, pack, unpack
from primespark.store.analytics.plan import Plan
from primespark.store.analytics.queries import Answer, Query
from primespark.store.analytics.selection import MAX_SERIES_DAYS, Filter, Op
from primespark.store.samples import Sample
from tests.helpers import rounds
from tests.series import series_of
from tests.valkey import Valkey, running_valkey

T0 = datetime(2026, 3, 27, tzinfo=UTC)
DAY = timedelta(days=1)
BY_HOUR = Query(["m"], [Aggregation.SUM, Aggregation.COUNT], T0, T0 + 2 * DAY, of_unit(Unit.HOUR))


@pytest.fixture(scope="module")
def valkey() -> Iterator[Valkey]:
    with running_valkey() as server:
        yield server


def put(engine: Engine, *rows: tuple[timedelta, float], device_id: str = "edge-1", seq: int = 0) -> None:
    given_rows = [Sample("m", device_id, "test", {}, T0 + offset, seq, value) for offset, value in rows]
    with engine.begin() as connection:
        samples.insert(connection, given_rows)


def ask(engine: Engine, answers: Answers, query: Query) -> tuple[Answer, bool]:
    with engine.begin() as connection:
        return answers.answer(connection, query)


def test_a_late_sample_lets_go_of_its_day_only(store_engine: Engine, valkey: Valkey) -> None:
    put(store_engine, (timedelta(hours=1), 1.0), (DAY + timedelta(hours=1), 2.0))
    answers = Answers(RedisCache(valkey.url))
    first, second = replace(BY_HOUR, end=T0 + DAY), replace(BY_HOUR, start=T0 + DAY)
    asked = (first, second, first, second)
    assert [ask(store_engine, answers, query)[1] for query in asked] == [False, False, True, True]
    put(store_engine, (timedelta(hours=2), 5.0))
    (answer, is_kept), (_, other_is_kept) = (ask(store_engine, answers, query) for query in (first, second))
    assert (is_kept, other_is_kept) == (False, True)
    assert list(answer.series[0].columns[0]) == [1.0, 5.0]
    # A sample that was there already changes nothing.
    put(store_engine, (timedelta(hours=2), 5.0))
    assert ask(store_engine, answers, first)[1]
    # Nor does another series that the question is not about.
    about_one = replace(first, filters=[Filter("device_id", Op.EQUAL, "edge-1")])
    assert ask(store_engine, answers, about_one)[1]
    put(store_engine, (timedelta(hours=2), 5.0), device_id="edge-2")
    assert ask(store_engine, answers, about_one)[1]
    assert not ask(store_engine, answers, first)[1]


def test_questions_that_differ_have_answers_of_their_own(store_engine: Engine, valkey: Valkey) -> None:
    put(store_engine, *((timedelta(hours=hour), float(hour)) for hour in range(48)))
    answers = Answers(RedisCache(valkey.url))
    percentile = replace(BY_HOUR, aggregations=[Aggregation.PERCENTILE], percentile=50.0)
    asked = [
        BY_HOUR, replace(BY_HOUR, aggregations=[Aggregation.SUM]), replace(BY_HOUR, granularity=of_unit(Unit.DAY)),
        replace(BY_HOUR, granularity=None), replace(BY_HOUR, end=T0 + timedelta(hours=47, seconds=1)),
        replace(BY_HOUR, group_by=["device_id"]), replace(BY_HOUR, group_by=["source"]), percentile,
        replace(percentile, percentile=51.0), replace(percentile, is_exact=True),
        replace(BY_HOUR, filters=[Filter("device_id", Op.EQUAL, "nobody")]),
    ]  # fmt: skip
    for query in asked:
        answer, is_kept = ask(store_engine, answers, query)
        with store_engine.begin() as connection:
            assert (answer, is_kept) == (queries.run(connection, query), False)
        again, _ = ask(store_engine, answers, query)
        assert again == answer


def test_a_kept_answer_takes_one_question_to_the_store(store_engine: Engine, valkey: Valkey) -> None:
    put(store_engine, (timedelta(hours=1), 1.0))
    answers = Answers(RedisCache(valkey.url))
    ask(store_engine, answers, BY_HOUR)
    asked: list[str] = []
    event.listen(store_engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert ask(store_engine, answers, BY_HOUR)[1]
    assert len(asked) == 1


def test_a_question_about_too_many_days_is_not_kept(store_engine: Engine, valkey: Valkey) -> None:
    put(store_engine, (timedelta(hours=1), 1.0))
    answers = Answers(RedisCache(valkey.url))
    for days, kept in ((MAX_SERIES_DAYS - 1, [False, True]), (MAX_SERIES_DAYS, [False, False])):
        query = replace(BY_HOUR, granularity=None, end=T0 + days * DAY)
        assert [ask(store_engine, answers, query)[1] for _ in range(2)] == kept


histories = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 47), st.sampled_from(["edge-1", "edge-2"])),
        st.tuples(st.just("ask"), st.integers(0, 47), st.integers(1, 48)),
        st.tuples(st.sampled_from(["refresh", "flush", "damage"]), st.just(0), st.just(0)),
    ),
    max_size=25,
)


@settings(
    max_examples=rounds(40, 500), deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip
@pytest.mark.prove
@given(histories)
def test_a_kept_answer_is_what_would_be_worked_out(law_engine: Engine, valkey: Valkey, history: list[Any]) -> None:
    with law_engine.begin() as connection:
        connection.execute(
            text("TRUNCATE metrics.sample_standard, metrics.dirty, metrics.rollup_1h, metrics.day_version")
        )
    answers = Answers(RedisCache(valkey.url))
    client = Redis.from_url(valkey.url)
    client.flushall()
    for number, (what, first, second) in enumerate(history):
        if what == "put":
            put(law_engine, (timedelta(hours=first), float(number)), device_id=second, seq=number)
        elif what == "refresh":
            with law_engine.begin() as connection:
                rollups.refresh_hours(connection, T0, T0 + 3 * DAY)
        elif what == "flush":
            client.flushall()
        elif what == "damage":
            for key in client.scan_iter():
                client.set(key, str(client.get(key))[:-3])
        else:
            start = T0 + timedelta(hours=first)
            query = replace(BY_HOUR, start=start, end=start + timedelta(hours=second))
            answer, _ = ask(law_engine, answers, query)
            with law_engine.begin() as connection:
                assert answer.series == queries.run(connection, query).series


@pytest.mark.parametrize("what", ["nobody there", "silent", "killed", "full"])
def test_a_server_that_fails_costs_time_only(store_engine: Engine, what: str) -> None:
    put(store_engine, (timedelta(hours=1), 1.0))
    with running_valkey() as server:
        answers = Answers(RedisCache("unix:///nowhere/valkey.sock" if what == "nobody there" else server.url))
        expected = ask(store_engine, Answers(NoCache()), BY_HOUR)
        if what == "silent":
            server.process.send_signal(signal.SIGSTOP)
        elif what == "killed":
            assert not ask(store_engine, answers, BY_HOUR)[1]
            server.process.kill()
            server.process.wait()
        elif what == "full":
            Redis.from_url(server.url).config_set("maxmemory-policy", "noeviction")
            Redis.from_url(server.url).config_set("maxmemory", 1)
        started = time.monotonic()
        for _ in range(20):
            assert ask(store_engine, answers, BY_HOUR) == expected
        # Once told, it is left alone: not twenty times the time a socket is given.
        assert time.monotonic() - started < 2.0
        server.process.send_signal(signal.SIGCONT)


def test_threads_that_ask_the_same_wait_for_one() -> None:
    flights, begun, go, calls = SingleFlight(), threading.Event(), threading.Event(), []
    answer = Answer([], Plan(raw=[(T0, T0 + DAY)]), 0, is_exact=True)

    def work() -> Answer:
        calls.append(1)
        begun.set()
        assert go.wait(10)
        return answer

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(flights.run, "a", work)
        assert begun.wait(10)
        others = [pool.submit(flights.run, "a", lambda: pytest.fail("worked out twice")) for _ in range(3)]
        go.set()
        assert all(one.result(10) is answer for one in (first, *others))
    assert len(calls) == 1


def test_who_waited_for_one_that_failed_works_it_out_himself() -> None:
    flights, begun, go = SingleFlight(), threading.Event(), threading.Event()
    answer = Answer([], Plan(raw=[(T0, T0 + DAY)]), 0, is_exact=True)

    def fail() -> Answer:
        begun.set()
        assert go.wait(10)
        raise ValueError

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(flights.run, "a", fail)
        assert begun.wait(10)
        second = pool.submit(flights.run, "a", lambda: answer)
        go.set()
        assert second.result(10) is answer
        assert isinstance(first.exception(10), ValueError)
    assert flights.run("a", lambda: answer) is answer


@pytest.mark.parametrize("cache", [NoCache(), None], ids=["none", "redis"])
def test_what_is_kept_comes_back_as_it_was_or_not_at_all(valkey: Valkey, cache: AnswerCache | None) -> None:
    cache = cache or RedisCache(valkey.url)
    key = key_of("question", 1)
    assert cache.get(key) is None
    cache.put(key, b"\0answer")
    assert cache.get(key) in (b"\0answer", None)
    cache.put(key, bytes(9 * 1024 * 1024))
    assert cache.get(key) in (b"\0answer", None)
    assert cache.get(key_of("question", 2)) is None


@given(
    st.lists(st.tuples(st.dictionaries(st.text(), st.none() | st.text(), max_size=2), st.integers(0, 9)), max_size=4),
    st.binary(max_size=40),
)
def test_packed_series_are_read_as_they_were_and_nothing_else_is(parts: list[Any], other: bytes) -> None:
    series = [
        series_of(group, [(T0 + timedelta(seconds=n), [float(n), None]) for n in range(count)])
        for group, count in parts
    ]
    packed = pack(series, {"a": 1})
    found = unpack(packed)
    assert found is not None
    assert [(one.group, one.times, list(one.points())) for one in found[0]] == [
        (one.group, one.times, list(one.points())) for one in series
    ]
    assert found[1] == {"a": 1}
    assert unpack(other) is None
    assert unpack(packed[:-1]) is None
    assert unpack(packed + b"\0") is None
