"""Any history of two devices and a cloud, over a network that loses, doubles, delays and damages, ends well."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from sqlalchemy import Engine, text

from primespark.core.clock import Timestamp, wall_clock_ms
from primespark.errors import ConflictError
from primespark.store import conflicts, database, documents, groups, server
from primespark.store.reconciliation import MAX_CLOCK_AHEAD_MS, DocumentRules
from primespark.sync.documents import Document
from primespark.sync.regions import Region, restrict
from primespark.sync.strategies import Strategy, StrategyRule
from tests.helpers import rounds
from tests.integration.exchange.laws import (
    LawBrokenError,
    Written,
    check_convergence,
    check_uncontended,
    latest_of_each_leaf,
    maximal,
)
from tests.integration.exchange.replicas import Edge, Exchange, Fault

RULES = DocumentRules([StrategyRule("configurations", strategy, strategy) for strategy in Strategy], [""])
FLEET, CLOUD = groups.FLEET, documents.CLOUD
DAY_MS = 86_400_000
_numbers = itertools.count()

edges = st.integers(0, 1)
faults = st.sampled_from([Fault.NONE, Fault.NONE, *Fault])
which = st.integers(0, 1)
patches = st.dictionaries(st.sampled_from("ab"), st.sampled_from([None, 1, 2, 3]), min_size=1)

Place = tuple[str, str]


class ExchangeMachine(RuleBasedStateMachine):
    """The real parts, and beside them a list of the writes that were made."""

    engine: Engine
    folder: Path

    def __init__(self) -> None:
        super().__init__()
        self.writes: dict[Place, list[Written]] = {}
        self.counters: dict[int, tuple[str, int]] = {}
        self.owned: dict[tuple[str, str, Region], Any] = {}
        self.enqueued: list[list[int]] = [[], []]
        self.is_restamped = False
        self.here = Path(tempfile.mkdtemp(dir=self.folder))

    @initialize(
        strategies=st.permutations(list(Strategy)),
        ahead_s=st.sampled_from([(0, 0), (0, 0), (30, -30), (-40, 20), (86_400, -86_400), (-86_400, 0)]),
    )
    def begin(self, strategies: list[Strategy], ahead_s: tuple[int, int]) -> None:
        # Few documents, so that writes meet.
        self.keys = [strategy.value for strategy in strategies[:2]]
        number = next(_numbers)
        names = {f"edge-{name}-{number}": seconds * 1000 for name, seconds in zip("ab", ahead_s, strict=True)}
        self.is_restamped = max(ahead_s) * 1000 > MAX_CLOCK_AHEAD_MS
        self.exchange = Exchange(self.engine, self.here, RULES, names)

    @rule(at=edges, which=which, is_own=st.booleans(), patch=patches)
    def write_at_the_edge(self, at: int, which: int, is_own: bool, patch: dict[str, Any]) -> None:
        edge = self.exchange.edges[at]
        self._write_at(edge, edge.device_id if is_own else FLEET, self.keys[which], patch)

    @rule(at=edges, which=which, is_own=st.booleans())
    def delete_at_the_edge(self, at: int, which: int, is_own: bool) -> None:
        edge = self.exchange.edges[at]
        self._write_at(edge, edge.device_id if is_own else FLEET, self.keys[which], {"a": None, "b": None})

    @rule(at=edges, which=which, number=st.integers(1, 9))
    def report(self, at: int, which: int, number: int) -> None:
        edge = self.exchange.edges[at]
        key = self.keys[which]
        self.exchange.change(edge, edge.device_id, key, {"reported": {"n": number}})
        self.owned[edge.device_id, key, Region.REPORTED] = {"reported": {"n": number}}

    @rule(at=edges, which=which, number=st.integers(1, 9))
    def desire(self, at: int, which: int, number: int) -> None:
        scope, key = self.exchange.edges[at].device_id, self.keys[which]
        with self.engine.begin() as connection:
            documents.write_cloud(connection, scope, key, {"desired": {"n": number}})
        self.owned[scope, key, Region.DESIRED] = {"desired": {"n": number}}

    @rule(at=st.integers(0, 2), which=which, patch=patches)
    def write_in_the_cloud(self, at: int, which: int, patch: dict[str, Any]) -> None:
        scope, key = FLEET if at == 2 else self.exchange.edges[at].device_id, self.keys[which]
        before = self.exchange.in_cloud(scope, key)
        if not before.vv and all(leaf is None for leaf in patch.values()):
            return
        try:
            with self.engine.begin() as connection:
                documents.write_cloud(connection, scope, key, patch)
        except ConflictError:
            # Frozen.
            with self.engine.begin() as connection:
                assert documents.is_frozen(connection, scope, key)
            return
        self._note(CLOUD, scope, key, before, self.exchange.in_cloud(scope, key))

    @rule(at=edges)
    def enqueue(self, at: int) -> None:
        number = next(_numbers)
        self.exchange.enqueue(self.exchange.edges[at], number)
        self.enqueued[at].append(number)

    @rule(at=edges, fault=faults)
    def push(self, at: int, fault: Fault) -> None:
        self.exchange.push(self.exchange.edges[at], fault)

    @rule(at=edges, fault=faults, limit=st.integers(1, 3))
    def pull(self, at: int, fault: Fault, limit: int) -> None:
        self.exchange.pull(self.exchange.edges[at], fault, limit)

    @rule(at=st.integers(0, 99))
    def a_batch_comes_late(self, at: int) -> None:
        self.exchange.push_again(at)

    @rule(at=st.integers(0, 99))
    def a_page_comes_late(self, at: int) -> None:
        self.exchange.page_arrives(at)

    @precondition(lambda self: any(key == Strategy.MANUAL for _, key in self.writes))
    @rule(at=st.integers(0, 9), winner=st.sampled_from(["cloud", "device", "value"]))
    def decide(self, at: int, winner: str) -> None:
        with self.engine.begin() as connection:
            waiting = conflicts.waiting(connection)
            if not waiting:
                return
            chosen = waiting[at % len(waiting)]
            before = documents.read(connection, chosen.scope, chosen.key) or Document()
            named = {"cloud": CLOUD, "device": chosen.device_id}.get(winner)
            value = {"a": 9} if winner == "value" else None
            conflicts.resolve(connection, chosen.conflict_id, "test", winner=named, value=value)
            assert all((w.scope, w.key) != (chosen.scope, chosen.key) for w in conflicts.waiting(connection))
        self._note(CLOUD, chosen.scope, chosen.key, before, self.exchange.in_cloud(chosen.scope, chosen.key))

    def teardown(self) -> None:
        if not hasattr(self, "exchange"):
            return
        try:
            self.exchange.heal()
            self._check()
        finally:
            self.exchange.close()
            shutil.rmtree(self.here)

    def _write_at(self, edge: Edge, scope: str, key: str, patch: dict[str, Any]) -> None:
        before, after = self.exchange.change(edge, scope, key, patch)
        if before != after:
            self._note(edge.device_id, scope, key, before, after)

    def _note(self, replica: str, scope: str, key: str, before: Document, after: Document) -> None:
        if after.vv == before.vv:
            return
        made = self.writes.setdefault((scope, key), [])
        # Not what a device says it has seen: what it was shown, and its own.
        read = before.vv if replica == CLOUD else self.exchange.read.get((replica, scope, key), {})
        seen = frozenset(write.number for write in made if self._covers(read, write) or write.replica == replica)
        number = next(_numbers)
        self.counters[number] = (replica, after.vv[replica])
        saw, wrote = (restrict(document, Region.SHARED).value for document in (before, after))
        made.append(Written(number, replica, seen, saw, wrote, after.hlc))

    def _covers(self, vv: Mapping[str, int], write: Written) -> bool:
        replica, counter = self.counters[write.number]
        return vv.get(replica, 0) >= counter

    def _check(self) -> None:
        self._check_clock()
        self._check_facts()
        for (scope, key, region), value in self.owned.items():
            found = restrict(self.exchange.in_cloud(scope, key), region).value
            if found != value:
                raise LawBrokenError(f"I5: {scope}/{key}: {value} was written last to {region}, {found} stands")
        for place in {place[:2] for place in self.owned} | self.writes.keys():
            self._check_document(*place)

    def _check_clock(self) -> None:
        with self.engine.begin() as connection:
            stamps = [server.identity(connection).peek()]
            stamps += connection.execute(text("SELECT (jsonb_each_text(leaf_hlc)).value FROM sync.document")).scalars()
        newest = max(map(Timestamp.parse, stamps))
        if newest.unix_ms > wall_clock_ms() + MAX_CLOCK_AHEAD_MS:
            raise LawBrokenError(f"I6: the cloud follows a clock that runs ahead: {newest}")

    def _check_facts(self) -> None:
        for edge, numbers in zip(self.exchange.edges, self.enqueued, strict=True):
            with self.engine.begin() as connection:
                query = text("SELECT value->>'number' FROM sync.fact WHERE device_id = :d ORDER BY seq")
                stored = [float(number) for number in connection.execute(query, {"d": edge.device_id}).scalars()]
            if stored != numbers:
                raise LawBrokenError(f"I2, I3: {numbers} were enqueued, {stored} are stored")

    def _check_document(self, scope: str, key: str) -> None:
        stands = self.exchange.in_cloud(scope, key)
        readers = [edge for edge in self.exchange.edges if scope in (FLEET, edge.device_id)]
        held = [self.exchange.run(edge.documents.read(scope, key)) or Document() for edge in readers]
        check_convergence([(stands.value, stands.vv if stands.value else {})] + [(d.value, d.vv) for d in held])
        writes = self.writes.get((scope, key), [])
        assert all(self._covers(stands.vv, write) for write in writes), "I1: a write is missing"
        shared = restrict(stands, Region.SHARED).value
        with self.engine.begin() as connection:
            log = conflicts.page(connection, 0, 1000, scope=scope, key=key)
        if key != Strategy.MANUAL or not any(entry.resolved_at is None for entry in log):
            check_uncontended(writes, shared)
        if writes and not self.is_restamped:
            if key == Strategy.MERGE and shared != latest_of_each_leaf(writes):
                raise LawBrokenError(f"I4: {latest_of_each_leaf(writes)} were written last, {shared} stands")
            if key == Strategy.LATEST_WINS and shared != max(writes, key=lambda write: write.hlc).after:
                raise LawBrokenError(f"I4: {shared} is not the last of {writes}")
        self._check_losers(key, writes, shared, log)

    def _check_losers(
        self, key: str, writes: list[Written], shared: dict[str, Any], log: list[conflicts.Conflict]
    ) -> None:
        kept = [version["value"] for entry in log for version in (entry.cloud_version, entry.device_version)]
        for write in maximal(writes):
            if key == Strategy.MERGE:
                changed = {p for p in write.after if write.before.get(p) != write.after[p]}
                gone = {p: write.after[p] for p in changed if shared.get(p) != write.after[p]}
                is_kept = all(any(value.get(p) == leaf for value in kept) for p, leaf in gone.items())
            else:
                is_kept = write.after == shared or write.after in kept
            if not is_kept:
                raise LawBrokenError(f"I9: {write} lost against {shared} and is not in the conflict log: {kept}")


@pytest.fixture(scope="module")
def machine_engine(postgres_server: Any) -> Iterator[Engine]:
    url = postgres_server.create_store()
    engine = database.connect(url)
    yield engine
    engine.dispose()
    postgres_server.drop(url)


@pytest.mark.prove
def test_every_history_ends_well(machine_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> None:
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        ExchangeMachine.engine, ExchangeMachine.folder = machine_engine, Path(folder)
        run_state_machine_as_test(
            ExchangeMachine,
            settings=settings(
                max_examples=rounds(150, 10_000), stateful_step_count=25, deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
