"""Ticks as the sensor daemon makes them, and digits as labels in the store."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

import dagster as dg
from sqlalchemy import Engine, text

from primespark.core.clock import utc_now
from primespark.ml.datasets import DATASET
from primespark.store import labels
from primespark_assets.definitions import defs
from tests.unit.ml.data import Row


def tick(
    sensor: dg.SensorDefinition, instance: dg.DagsterInstance, resources: dict[str, Any], cursor: str | None = None
) -> Any:
    """One tick up to what the sensor asks for; nothing of it is stored."""
    with dg.build_sensor_context(instance=instance, cursor=cursor, resources=resources, definitions=defs) as context:
        return sensor.evaluate_tick(context)


def store_events(instance: dg.DagsterInstance, found: Any) -> None:
    """What the daemon does with a tick's events, before it stores the cursor."""
    for event in found.asset_events:
        instance.report_runless_asset_event(event)


def materializations(instance: dg.DagsterInstance, *path: str) -> list[dict[str, Any]]:
    """Metadata of an asset's materialisations, oldest first."""
    records = instance.fetch_materializations(dg.AssetKey(list(path)), limit=1000, ascending=True).records
    found = []
    for record in records:
        assert record.asset_materialization is not None
        found.append({name: value.value for name, value in record.asset_materialization.metadata.items()})
    return found


def add_labels(engine: Engine, rows: list[Row], age_s: float = 60.0) -> None:
    """Labels that came in so long ago."""
    now = utc_now()
    with engine.begin() as connection:
        stored = [labels.Label(row.sample, row.label, row.image_png, "test", now) for row in rows]
        labels.add(connection, DATASET, stored)
        connection.execute(text("UPDATE control.label SET received_at = :at"), {"at": now - timedelta(seconds=age_s)})


def seconds(action: Any) -> float:
    """How long something takes."""
    started = time.monotonic()
    action()
    return time.monotonic() - started
