"""Tickets: who waits for something is woken by it, and by nothing else once it is known what matters."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from primespark.core.tickets import Tickets

TOPICS = st.frozensets(st.sampled_from("abcd"), max_size=3)


async def test_a_ticket_that_was_not_narrowed_is_woken_by_everything() -> None:
    tickets = Tickets()
    ticket = tickets.ticket()
    tickets.wake({"a"})
    assert ticket.done()


@given(own=TOPICS, said=TOPICS)
async def test_a_narrowed_ticket_is_woken_by_its_topics_only(own: frozenset[str], said: frozenset[str]) -> None:
    tickets = Tickets()
    ticket = tickets.ticket()
    tickets.narrow(ticket, own)
    tickets.wake(said)
    assert ticket.done() == any(topic in own for topic in said)
    tickets.wake_all()
    assert ticket.done()


async def test_what_happened_before_it_was_narrowed_is_not_missed() -> None:
    tickets = Tickets()
    ticket = tickets.ticket()
    tickets.wake({"a"})
    tickets.narrow(ticket, {"b"})
    assert await tickets.wait_for(ticket, 10)
    assert not tickets._waiting
