"""Any history of memberships and forgotten deletions over a network that fails: each ends with what is its to read."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from sqlalchemy import Engine

from primespark.core.clock import utc_now
from primespark.core.identifiers import group_scope
from primespark.errors import NotFoundError
from primespark.store import documents, groups, tombstones
from primespark.store.reconciliation import DocumentRules
from tests.helpers import rounds
from tests.integration.exchange.replicas import Edge, Exchange, Fault
from tests.integration.exchange.test_machine import machine_engine

__all__ = ["machine_engine"]
GROUPS = ("a", "b")
SCOPES = ("group:a", "group:b", "fleet", "own")
DAY = timedelta(days=1)
_numbers = itertools.count()

edges = st.integers(0, 1)
names = st.sampled_from(GROUPS)
faults = st.sampled_from([Fault.NONE, Fault.NONE, Fault.TWICE, Fault.REPLY_LOST])


class GroupsMachine(RuleBasedStateMachine):
    """Two devices that join and leave, documents that come and go, and a model of both that is two dictionaries."""

    engine: Engine
    folder: Path

    @initialize()
    def begin(self) -> None:
        number = next(_numbers)
        self.here = Path(tempfile.mkdtemp(dir=self.folder))
        devices = {f"member-{name}-{number}": 0 for name in "ab"}
        self.exchange = Exchange(self.engine, self.here, DocumentRules(), devices)
        self.members: dict[str, set[str]] = {edge.device_id: set() for edge in self.exchange.edges}
        self.holds: dict[tuple[str, str], int] = {}
        for scope in range(len(SCOPES)):
            self.write(scope, is_deleted=False)
        self.exchange.heal()

    @rule(at=edges, group=names)
    def join(self, at: int, group: str) -> None:
        device_id = self.exchange.edges[at].device_id
        with self.engine.begin() as connection:
            assert groups.join(connection, device_id, group) == (group not in self.members[device_id])
        self.members[device_id].add(group)

    @rule(at=edges, group=names)
    def leave(self, at: int, group: str) -> None:
        device_id = self.exchange.edges[at].device_id
        try:
            with self.engine.begin() as connection:
                groups.leave(connection, device_id, group)
        except NotFoundError:
            assert group not in self.members[device_id]
        self.members[device_id].discard(group)

    @rule(scope=st.integers(0, 3), is_deleted=st.booleans())
    def write(self, scope: int, is_deleted: bool) -> None:
        where, key, number = SCOPES[scope], "k", next(_numbers)
        if where == "own":
            where = self.exchange.edges[0].device_id
        if is_deleted and (where, key) not in self.holds:
            return
        with self.engine.begin() as connection:
            documents.write_cloud(connection, where, key, {"n": None if is_deleted else number})
        if is_deleted:
            del self.holds[where, key]
        else:
            self.holds[where, key] = number

    @rule(at=edges)
    def write_at_the_edge(self, at: int) -> None:
        edge, number = self.exchange.edges[at], next(_numbers)
        self.exchange.change(edge, edge.device_id, "mine", {"n": number})
        self.holds[edge.device_id, "mine"] = number

    @rule(at=edges, fault=faults)
    def push(self, at: int, fault: Fault) -> None:
        self.exchange.push(self.exchange.edges[at], fault)

    @rule(at=edges, fault=faults, limit=st.integers(1, 3))
    def pull(self, at: int, fault: Fault, limit: int) -> None:
        self.exchange.pull(self.exchange.edges[at], fault, limit)

    @rule(at=st.integers(0, 99))
    def a_page_comes_late(self, at: int) -> None:
        self.exchange.page_arrives(at)

    @rule()
    def exchange_in_peace(self) -> None:
        self.exchange.heal()

    @rule()
    def forget_what_was_deleted(self) -> None:
        """As if no device had been there for long."""
        with self.engine.begin() as connection:
            tombstones.collect(connection, utc_now() + 2 * DAY, DAY, DAY)

    def teardown(self) -> None:
        if not hasattr(self, "exchange"):
            return
        try:
            self.exchange.heal()
            for edge in self.exchange.edges:
                self._check(edge)
        finally:
            self.exchange.close()
            shutil.rmtree(self.here)

    def _check(self, edge: Edge) -> None:
        scopes = {"fleet", edge.device_id, *map(group_scope, self.members[edge.device_id])}
        is_to_read = {place: number for place, number in self.holds.items() if place[0] in scopes}
        kept = self.exchange.run(edge.documents.page(("", ""), 1000))
        assert {(entry.scope, entry.key): entry.document.value.get("n") for entry in kept} == is_to_read
        assert not any(entry.is_dirty for entry in kept)
        holds: dict[str, int] = {}
        for scope in ("fleet", *map(group_scope, sorted(self.members[edge.device_id])), edge.device_id):
            holds |= {key: number for (place, key), number in is_to_read.items() if place == scope}
        for key in ("k", "mine"):
            assert self.exchange.run(edge.documents.effective(key)).get("n") == holds.get(key)


def test_a_deletion_is_forgotten_between_joining_a_group_and_reading_it(machine_engine: Engine, tmp_path: Path) -> None:
    GroupsMachine.engine, GroupsMachine.folder = machine_engine, tmp_path
    machine = GroupsMachine()
    machine.begin()
    machine.join(at=0, group="a")
    machine.forget_what_was_deleted()
    machine.pull(at=0, fault=Fault.NONE, limit=1)
    machine.write(scope=3, is_deleted=True)
    machine.forget_what_was_deleted()
    machine.teardown()


@pytest.mark.prove
def test_each_device_ends_with_what_is_its_to_read(machine_engine: Engine) -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        GroupsMachine.engine, GroupsMachine.folder = machine_engine, Path(folder)
        run_state_machine_as_test(
            GroupsMachine,
            settings=settings(
                max_examples=rounds(25, 2000), stateful_step_count=30, deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
