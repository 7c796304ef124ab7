"""The stream worker without Faust: messages in, results and snapshots out, offsets committed last.

One cycle delivers results (topic, then store), then writes what changed in the state of partitions, then commits their
offsets. So state may run ahead of commits, never behind; what is read again after a crash is known by the snapshot's
offset. A change of assignment drops all state in memory and loads it again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Any

from aiokafka.errors import KafkaError

from primespark.core.clock import steady_ms
from primespark.core.logging import get_logger
from primespark.errors import ConflictError
from primespark.windows.engine import Partition, WindowEngine
from primespark.windows.records import Messages, Singles
from primespark.windows.repartition import RoutedMessage
from primespark.windows.rules import AggregationRule
from streams.contracts import Incoming, ResultSink, Snapshots, Source
from streams.decode import Decoded, Poison, portions
from streams.sink import DeadLetter, Outgoing
from streams.statistics import Statistics

SNAPSHOT_INTERVAL_S = 1.0
_COALESCE_S = 0.05
_TICK_S = 1.0
_MAX_WAITING = 5_000
_RETRY_BASE_S = 0.2
_RETRY_MAX_S = 5.0
_LAST_CYCLE_TIMEOUT_S = 2.0

log = get_logger(__name__)


class StreamWorker:
    """Runs an engine between a source, a sink and a snapshot store; all methods on one event loop."""

    def __init__(self, engine: WindowEngine, source: Source, sink: ResultSink, snapshots: Snapshots) -> None:
        self.engine = engine
        self.statistics = Statistics()
        self.failure = ""
        self._source = source
        self._sink = sink
        self._snapshots = snapshots
        self._outgoing = Outgoing()
        self._assigned = asyncio.Event()
        self._leaving = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._wake = asyncio.Event()
        self._cycle = asyncio.Lock()
        self._epoch = 0
        self._closing = False
        self._loading: asyncio.Task[None] | None = None
        self._snapshot_due_at = 0.0
        self._opened = False
        self._known_gaps: dict[Partition, tuple[int, int | None]] = {}

    @property
    def not_ready(self) -> dict[str, str]:
        """What is not ready, and why; empty when messages flow."""
        causes = {}
        if not self._assigned.is_set():
            causes["partitions"] = "not assigned, or their state is not loaded"
        if not self._opened:
            causes["store"] = self.failure or "not opened"
        elif self.failure:
            causes["delivery"] = self.failure
        return causes

    async def take(self, incoming: Incoming) -> None:
        """Take in messages, of each partition in order; waits while too much is undelivered."""
        for portion in portions(incoming.topic, incoming.partition, incoming.records):
            await self._assigned.wait()
            await self._room.wait()
            if not self._is_current(incoming) or not await self._is_next(incoming, portion[0]):
                return
            self._take(incoming, portion)
            if len(self._outgoing) > _MAX_WAITING:
                self._room.clear()
            self._wake.set()
            await asyncio.sleep(0)

    def change_rule(self, rule_id: str, rule: AggregationRule | None) -> None:
        """Let a rule, or none, take the place of the one of this name; it starts empty, with the next record."""
        self.engine.remove_rule(rule_id)
        if rule is not None and rule.enabled:
            self.engine.add_rule(rule, steady_ms())
        self._wake.set()

    async def assigned(self, partitions: Collection[Partition]) -> None:
        """Begin to load the state of the partitions now at hand; before it is there, nothing of them is taken in."""
        await self.revoked()
        self.statistics.rebalances += 1
        self._loading = asyncio.create_task(self._load(partitions), name="loading")

    async def loaded(self) -> None:
        """Wait for the state of the last assignment; cancelled when another follows, or raises why it failed."""
        if self._loading is not None:
            await self._loading

    async def revoked(self) -> None:
        """Persist what can be persisted at once and forget all partitions."""
        self._leaving.set()
        if self._loading is not None and not self._loading.done():
            self._loading.cancel()
            await asyncio.wait([self._loading])
        if self._assigned.is_set():
            self._assigned.clear()
            await self._last_cycle()
        # What still works for the old assignment gives up when it sees another epoch.
        self._epoch += 1
        self._outgoing = Outgoing()
        self._room.set()
        self._known_gaps.clear()
        for topic, partition in self.engine.partitions:
            self.engine.revoke(topic, partition)

    async def run(self) -> None:
        """Deliver and snapshot until cancelled."""
        await self._retry(self._open)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._run_ticks(), name="ticks")
            group.create_task(self._run_cycles(), name="cycles")

    async def close(self) -> None:
        """Stop taking messages, persist what was taken."""
        self._closing = True
        await self.revoked()

    async def _load(self, partitions: Collection[Partition]) -> None:
        mine = [partition for partition in partitions if partition[0] in self.engine.source_topics]
        found = await self._snapshots.load(mine)
        self.statistics.snapshots_refused = self._snapshots.refused
        now_ms = steady_ms()
        for topic, partition in mine:
            snapshot = found.get((topic, partition))
            if snapshot is None:
                self.engine.assign(topic, partition, now_ms)
            else:
                self.engine.restore(snapshot, now_ms, restart_idle=True)
        log.info("partitions_assigned", partitions=len(mine), restored=len(found))
        self._leaving.clear()
        self._assigned.set()
        self._wake.set()

    def _is_current(self, incoming: Incoming) -> bool:
        return (
            self._assigned.is_set()
            and not self._closing
            and incoming.generation == self._source.generation()
            and self.engine.holds(incoming.topic, incoming.partition)
        )

    async def _is_next(self, incoming: Incoming, first: Decoded) -> bool:
        """False if records between the state and this message were never handed over; they are fetched again.

        Around a rebalance a message fetched under the old assignment can arrive first; taking it in would make the
        records before it look like duplicates. A gap that the log itself has (retention, compaction) is none.
        """
        key = (incoming.topic, incoming.partition)
        expected = self.engine.next_offset(*key)
        if first.offset <= expected:
            return True
        if self._known_gaps.get(key, (None, None))[0] != expected:
            found = await self._snapshots.first_offset_from(*key, expected)
            if not self._is_current(incoming):
                return False
            self._known_gaps[key] = (expected, found)
        if self._known_gaps[key][1] == first.offset:
            return True
        self.statistics.gaps += 1
        log.warning("records_skipped_by_source", topic=key[0], partition=key[1], expected=expected, got=first.offset)
        await self._source.seek(*key, expected)
        return False

    def _take(self, incoming: Incoming, portion: Iterable[Decoded]) -> None:
        readable: list[Messages] = []
        for message in portion:
            if isinstance(message, RoutedMessage):
                self._process_routed(message)
            elif isinstance(message, Poison):
                self._process(readable)
                readable = []
                self._bury(incoming, message)
            else:
                readable.append(message)
        self._process(readable)

    def _process_routed(self, message: RoutedMessage) -> None:
        output = self.engine.process_routed(message, steady_ms())
        self.statistics.messages += 1
        self.statistics.routed += len(message.rows)
        self.statistics.results += len(output.results)
        self._outgoing.extend(output, self.engine.target_of)

    def _process(self, messages: list[Messages]) -> None:
        if messages:
            output = self.engine.process_chunk(messages, steady_ms())
            self.statistics.messages += sum([len(one.rows) if isinstance(one, Singles) else 1 for one in messages])
            self.statistics.rows += sum([len(one.rows) for one in messages])
            self.statistics.results += len(output.results)
            self._outgoing.extend(output, self.engine.target_of)

    def _bury(self, incoming: Incoming, poison: Poison) -> None:
        topic, partition, offset = incoming.topic, incoming.partition, poison.offset
        if offset < self.engine.next_offset(topic, partition):
            self.engine.duplicates += 1
            return
        self.engine.skip(topic, partition, offset)
        self.statistics.messages += 1
        self.statistics.poison += 1
        error = poison.error
        self._outgoing.dead.append(DeadLetter(topic, partition, offset, poison.value, error.code, error.message))
        log.warning("poison_message", topic=topic, partition=partition, offset=offset, reason=error.message)

    async def _run_ticks(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            if self._assigned.is_set():
                output = self.engine.tick(steady_ms())
                self.statistics.results += len(output.results)
                self._outgoing.extend(output, self.engine.target_of)
                if output.results:
                    self._wake.set()
            try:
                await self._snapshots.trim()
            except KafkaError as error:
                log.warning("trim_failed", error=str(error))

    async def _run_cycles(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await asyncio.sleep(_COALESCE_S)
            remaining_s = self._snapshot_due_at - time.monotonic()
            if remaining_s > 0:
                asyncio.get_running_loop().call_later(remaining_s, self._wake.set)
            async with self._cycle:
                await self._deliver_and_snapshot(with_snapshot=remaining_s <= 0)

    async def _deliver_and_snapshot(self, *, with_snapshot: bool) -> None:
        # No await between these lines: results and snapshot are of one moment.
        outgoing, self._outgoing = self._outgoing, Outgoing()
        changed = self.engine.take_changed() if with_snapshot else []
        snapshots = [self.engine.take_changes(*partition) for partition in changed]
        epoch = self._epoch
        if len(outgoing):
            await self._retry(lambda: self._sink.deliver(outgoing), epoch)
        self._room.set()
        if snapshots:
            await self._retry(lambda: self._persist(snapshots, epoch), epoch)
            self._snapshot_due_at = time.monotonic() + SNAPSHOT_INTERVAL_S

    async def _persist(self, snapshots: list[dict[str, Any]], epoch: int) -> None:
        sizes = []
        for snapshot in snapshots:
            if epoch != self._epoch:
                return  # the partitions were loaded anew meanwhile, and these changes are not of that state
            sizes.append(await self._snapshots.write(snapshot))
        if epoch != self._epoch:
            return
        self.statistics.snapshots += len(sizes)
        self.statistics.snapshot_bytes = max(sizes)
        self.statistics.snapshots_refused = self._snapshots.refused
        self.statistics.snapshot_at = time.time()
        await self._source.commit({(item["topic"], item["partition"]): item["next_offset"] for item in snapshots})

    async def _open(self) -> None:
        await self._sink.open()
        self._opened = True

    async def _last_cycle(self) -> None:
        """One cycle without retries: what fails is read again under the next assignment."""
        epoch = self._epoch
        try:
            async with asyncio.timeout(_LAST_CYCLE_TIMEOUT_S), self._cycle:
                if epoch != self._epoch:
                    return  # the cycle before it gave up, and a snapshot now would hide that its results are missing
                if len(self._outgoing):
                    await self._sink.deliver(self._outgoing)
                snapshots = [self.engine.take_changes(*partition) for partition in self.engine.take_changed()]
                if snapshots:
                    await self._persist(snapshots, epoch)
        except Exception as error:  # noqa: BLE001 (whatever failed, the records are read again)
            log.warning("last_cycle_failed", error=str(error))

    async def _is_leaving_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._leaving.wait()
        except TimeoutError:
            return False

    async def _retry(self, action: Callable[[], Awaitable[None]], epoch: int | None = None) -> None:
        """Repeat `action` until it succeeds, or the assignment of its `epoch` goes, which ends the epoch."""
        pause_s = _RETRY_BASE_S
        while epoch is None or epoch == self._epoch:
            try:
                await action()
            except ConflictError:
                raise  # another worker writes this state: what is in memory here is of no use any more
            except Exception as error:  # noqa: BLE001 (broker, store and driver each have their own tree)
                self.statistics.failures += 1
                self.failure = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                log.warning("retrying", error=self.failure)
                pause_s = min(pause_s * 2, _RETRY_MAX_S)
                jittered_s = pause_s * random.uniform(0.25, 0.5)  # noqa: S311 (jitter, not a secret)
                if epoch is None:
                    await asyncio.sleep(jittered_s)
                elif await self._is_leaving_within(jittered_s):
                    self._epoch += 1
            else:
                self.failure = ""
                return
