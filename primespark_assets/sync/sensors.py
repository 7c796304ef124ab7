"""Edge data in Dagster's history: one materialisation per class and tick, without a run, however many batches came.

The cursor is a position in the sync log, whose order is commit order. Dagster stores events before the cursor, so a
daemon killed between the two comes here again with the old cursor: each event carries the position it reached, and a
tick goes on from there. To look it up costs a third of a tick here, so it is not looked up where the cursor is the one
that the last tick of this process answered: then all of that tick is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import dagster as dg

from primespark_assets.sync.assets import CLASSES, EDGE
from resources import Later, StoreResource

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from primespark.store.sync_log import ClassSummary, LogSummary

# A tick costs 0.15 s of processor time in code server and daemon, whatever it finds. So one that finds nothing stays
# long, well inside the minute after which Dagster's call to the code server fails; and while devices push all the time,
# what they push is gathered.
LONG_POLL_S = 50.0
_GATHER_S = 30
_MAX_LOG_ROWS_PER_TICK = 10_000
_MAX_DEVICES_NAMED = 100
_answered: str | None = None


@dg.sensor(
    name="edge_batches",
    minimum_interval_seconds=_GATHER_S,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Records what devices pushed and which documents changed.",
)
def edge_batches(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    """Record what came in since the cursor; wait for something if nothing did."""
    return record(context, store)


def record(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    """What a tick does, whichever sensor it is of."""
    from primespark.store import sync_log

    global _answered
    after = _position(context.cursor)

    def look(connection: Connection) -> LogSummary | Later:
        summary = sync_log.summarise(connection, after, _MAX_LOG_ROWS_PER_TICK)
        return summary if summary.next_cursor > after else Later("nothing came in")

    summary = store.wait_for(look, LONG_POLL_S, sync_log.CHANNEL)
    if isinstance(summary, Later):
        return dg.SensorResult(skip_reason=dg.SkipReason(summary.reason), cursor=context.cursor)

    def again(position: int) -> LogSummary:
        with store.transaction() as connection:
            return sync_log.summarise(connection, position, _MAX_LOG_ROWS_PER_TICK)

    if context.cursor is None or context.cursor != _answered:
        found = {name: _unrecorded(context.instance, name, summary, again) for name in CLASSES}
    else:
        found = {name: summary.classes.get(name) for name in CLASSES}
    _answered = json.dumps({"v": 1, "log_seq": summary.next_cursor})
    events = [_event(name, of_class) for name, of_class in found.items() if of_class]
    return dg.SensorResult(asset_events=events, cursor=_answered)


def _unrecorded(
    instance: dg.DagsterInstance, name: str, summary: LogSummary, again: Callable[[int], LogSummary]
) -> ClassSummary | None:
    """What of a class no materialisation tells of yet."""
    found = summary.classes.get(name)
    if found is None or found.log_from > (recorded := _recorded(instance, name)):
        return found
    return None if found.log_to <= recorded else again(recorded).classes.get(name)


def _recorded(instance: dg.DagsterInstance, name: str) -> int:
    event = instance.get_latest_materialization_event(dg.AssetKey([EDGE, name]))
    materialization = event.asset_materialization if event else None
    value = materialization.metadata.get("log_to") if materialization else None
    return int(str(value.value)) if value else 0


def _event(name: str, found: ClassSummary) -> dg.AssetMaterialization:
    return dg.AssetMaterialization(
        asset_key=[EDGE, name],
        description=_describe(found),
        metadata={
            "log_from": found.log_from,
            "log_to": found.log_to,
            "devices": dg.MetadataValue.json(list(found.devices[:_MAX_DEVICES_NAMED])),
            "device_count": len(found.devices),
            **({"documents": found.documents} if found.documents else {"batches": found.batches}),
            "rows": found.rows,
            "time_from": dg.MetadataValue.timestamp(found.time_from),
            "time_to": dg.MetadataValue.timestamp(found.time_to),
        },
    )


def _describe(found: ClassSummary) -> str:
    if found.documents:
        return f"{found.rows} changes of {found.documents} documents in {len(found.devices)} scopes"
    return f"{found.rows} facts in {found.batches} batches of {len(found.devices)} devices"


def _position(cursor: str | None) -> int:
    return int(json.loads(cursor)["log_seq"]) if cursor else 0
