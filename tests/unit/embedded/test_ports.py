"""Ports: the preferred one if it can be had, never one twice."""

from __future__ import annotations

import socket

from primespark.embedded.ports import choose_port
from tests.kafka.brokers import free_port


def test_the_preferred_port_if_it_is_free() -> None:
    preferred = free_port()
    taken: set[int] = set()
    assert choose_port(preferred, taken) == preferred
    assert taken == {preferred}


def test_another_port_if_someone_listens_there() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        occupied = holder.getsockname()[1]
        chosen = choose_port(occupied, set())
    assert chosen != occupied
    assert chosen > 0


def test_no_port_is_given_twice() -> None:
    preferred = free_port()
    taken: set[int] = set()
    chosen = [choose_port(preferred, taken) for _ in range(20)] + [choose_port(0, taken) for _ in range(20)]
    assert len(set(chosen)) == len(chosen) == len(taken)


def test_a_port_whose_last_connections_still_linger_is_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()
    assert choose_port(port, set()) == port
