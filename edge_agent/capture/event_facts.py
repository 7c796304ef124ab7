"""A result and its events on their way into the queue."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import Counter

from edge_agent.queue import NewFact, OfflineQueue

EVENT_STREAM = "events"

EVENTS = Counter("primespark_capture_events_total", "Events by what became of them.", ["outcome"])
for _outcome in ("enqueued", "lost"):
    EVENTS.labels(_outcome)


async def enqueue_with_events(queue: OfflineQueue, result: NewFact, events: Sequence[NewFact]) -> None:
    """Enqueue a result and its events together, or none of them; the events are counted either way.

    Raises:
        OverloadedError: Code `queue_full`.
    """
    is_enqueued = False
    try:
        await queue.enqueue([result, *events])
        is_enqueued = True
    finally:
        EVENTS.labels("enqueued" if is_enqueued else "lost").inc(len(events))
