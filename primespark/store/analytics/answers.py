"""Answers that are worked out once while nothing they are made of changes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future

from sqlalchemy import Connection

from primespark.store.analytics import queries
from primespark.store.analytics.cache import AnswerCache, key_of, pack, unpack
from primespark.store.analytics.queries import Answer, Prepared, Query
from primespark.store.analytics.series import to_microseconds


class Answers:
    """Answers questions, and keeps the answers.

    Args:
        cache: Where.
    """

    def __init__(self, cache: AnswerCache) -> None:
        self._cache = cache
        self._flights = SingleFlight()

    def answer(self, connection: Connection, query: Query) -> tuple[Answer, bool]:
        """The answer as of one moment, and whether it was kept; the connection has begun no transaction yet.

        Raises:
            InvalidInputError: It says what is wrong with the question.
        """
        prepared = queries.prepare(connection, query, with_version=True)
        if prepared.selection.version is None:
            return queries.work_out(connection, prepared), False
        key = _key(prepared)
        packed = self._cache.get(key)
        kept = unpack(packed) if packed is not None else None
        if kept is not None:
            series, notes = kept
            return Answer(series, prepared.plan, notes["stale_hours"], notes["is_exact"]), True

        def work() -> Answer:
            answer = queries.work_out(connection, prepared)
            notes = {"stale_hours": answer.stale_hours, "is_exact": answer.is_exact}
            self._cache.put(key, pack(answer.series, notes))
            return answer

        return self._flights.run(key, work), False


class SingleFlight:
    """Lets one thread work out what several ask for at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[str, Future[Answer]] = {}

    def run(self, key: str, work: Callable[[], Answer]) -> Answer:
        """What `work` gives, or what it gives to a thread that asked for the same before.

        Where that one fails, each does its own work.
        """
        with self._lock:
            others = self._flights.get(key)
            own: Future[Answer] = Future()
            if others is None:
                self._flights[key] = own
        if others is not None:
            return others.result() if others.exception() is None else work()
        try:
            answer = work()
        except BaseException as error:
            # Whatever it was, who waits must not wait for ever.
            own.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._flights[key]
        own.set_result(answer)
        return answer


def _key(prepared: Prepared) -> str:
    query = prepared.query
    granularity = query.granularity
    return key_of(
        [to_microseconds(query.start), to_microseconds(query.end)],
        None if granularity is None else [str(granularity.width), str(granularity.zone)],
        [*query.aggregations], query.percentile, query.is_exact, query.fill,
        prepared.selection.groups, prepared.selection.series,
        prepared.selection.version,
    )  # fmt: skip
