"""The Faust app: consumer group, rebalance and one agent over the source topics; state and windows are elsewhere.

Faust's own acknowledgements are off for the source topics: it acknowledges what it skips in a rebalance, and would so
commit offsets of records that nobody counted. The worker commits by itself, after its snapshot.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from primespark.core.paths import home, private_directory
from primespark.core.settings import Settings
from primespark.errors import MissingDependencyError
from primespark.windows.engine import Partition
from streams.contracts import Incoming
from streams.topics import require_bootstrap_servers
from streams.worker import StreamWorker

APP_ID = "primespark-streams"
# A worker that was killed holds its partitions until its session ends.
_SESSION_TIMEOUT_S = 10.0
_HEARTBEAT_S = 2.0
_MAX_POLL_RECORDS = 10_000
# Beyond, nothing more is fetched; each is 1 MB at most.
_MAX_WAITING_CHUNKS = 8


def import_faust() -> Any:
    """The `faust` module.

    Raises:
        MissingDependencyError: Not installed, as on machines without a wheel.
    """
    try:
        import faust
    except ImportError as error:
        raise MissingDependencyError(
            f"the stream worker needs Faust, which cannot be imported: {error}",
            remedy="install primespark[streams] (there is a wheel for x86-64 only), or set features.streams to false",
        ) from None
    return faust


def build_app(settings: Settings) -> Any:
    """A Faust app with no agent yet; no broker is contacted."""
    faust = import_faust()
    from streams.transport import ChunkTransport

    kafka = settings.cloud.kafka
    servers = require_bootstrap_servers(kafka).split(",")
    worker_id = settings.cloud.streams.worker_id
    app = faust.App(
        APP_ID,
        broker=[f"kafka://{server.strip()}" for server in servers],
        broker_client_id=f"{APP_ID}-{worker_id}",
        datadir=str(private_directory(home() / "streams" / worker_id)),
        store="memory://",
        TableManager=_no_tables(),
        web_enabled=False,
        topic_allow_declare=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        # The embedded broker never evicts a dead member, and gives partitions to nobody while one it knows is missing;
        # under a name that all have, whoever comes next takes its place.
        consumer_group_instance_id=APP_ID if kafka.embedded else None,
        broker_session_timeout=_SESSION_TIMEOUT_S,
        broker_heartbeat_interval=_HEARTBEAT_S,
        broker_max_poll_records=_MAX_POLL_RECORDS,
        stream_buffer_maxsize=_MAX_WAITING_CHUNKS,
        stream_wait_empty=False,
    )
    app.transport = ChunkTransport(app.conf.broker_consumer, app)
    return app


def _no_tables() -> Any:
    from faust.tables import TableManager

    class NoTables(TableManager):
        """Has no tables, so it does not wait a second for them to be declared."""

        logger = logging.getLogger("faust.tables")

        async def on_start(self) -> None:
            await self._update_channels()
            await self.recovery.start()

    return NoTables


def attach(app: Any, worker: StreamWorker) -> None:
    """Let `app` feed `worker`: one agent over all source topics, and the two calls of a rebalance."""
    topic = app.topic(
        *worker.engine.source_topics,
        key_type=bytes,
        key_serializer="raw",
        value_type=bytes,
        value_serializer="raw",
        acks=False,
    )

    # The event loop holds weak references to tasks.
    watching: set[asyncio.Task[None]] = set()

    async def facts(stream: Any) -> None:
        async for event in stream.events():
            try:
                await worker.take(_incoming(event.message))
            except Exception as error:
                # Faust would restart the agent behind this message and so lose it.
                await app.crash(error)
                raise

    async def loaded() -> None:
        try:
            await worker.loaded()
        except Exception as error:  # noqa: BLE001 (whatever failed, nothing can be taken in without the state)
            await app.crash(error)

    async def assigned(_app: Any, partitions: Any, **_: Any) -> None:
        # Heartbeats begin when this returns: who loaded here for longer than a session would lose the partitions, and
        # load again, for ever.
        await worker.assigned([(tp.topic, tp.partition) for tp in partitions])
        watching.add(watch := asyncio.create_task(loaded(), name="loaded"))
        watch.add_done_callback(watching.discard)

    async def revoked(_app: Any, partitions: Any, **_: Any) -> None:
        await worker.revoked()

    app.agent(topic, name="facts")(facts)
    # Signals hold weak references unless told otherwise.
    app.on_partitions_assigned.connect(assigned, weak=False)
    app.on_partitions_revoked.connect(revoked, weak=False)


class FaustSource:
    """The worker's view of the consumer of the app at work."""

    def __init__(self) -> None:
        self._app: Any = None

    def use(self, app: Any) -> None:
        """Turn to the app that follows."""
        self._app = app

    def generation(self) -> int | None:
        """The present generation of the group."""
        generation: int | None = self._app.consumer_generation_id
        return generation

    async def seek(self, topic: str, partition: int, offset: int) -> None:
        """Read on from `offset`."""
        from faust.types import TP

        await self._app.consumer.seek(TP(topic, partition), offset)

    async def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Commit next offsets; those of partitions no longer at hand are dropped."""
        from faust.types import TP

        consumer = self._app.consumer
        held = consumer.assignment()
        mine = {TP(*key): offset for key, offset in offsets.items() if TP(*key) in held}
        if mine:
            # The consumer's public commit knows acknowledged messages only.
            await consumer._commit(mine)


def _incoming(message: Any) -> Incoming:
    return Incoming(message.topic, message.partition, message.value, message.generation_id)
