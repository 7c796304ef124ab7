"""The code location that `benchmarks.dagster` runs: the sensor of edge batches, as often as it can tick."""

from __future__ import annotations

import dagster as dg

from primespark_assets.sync.assets import EDGE_ASSETS
from primespark_assets.sync.sensors import record
from resources import StoreResource


@dg.sensor(name="edge_batches", minimum_interval_seconds=1, default_status=dg.DefaultSensorStatus.RUNNING)
def often(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.SensorResult:
    """`edge_batches` without the 30 s in which it gathers."""
    return record(context, store)


defs = dg.Definitions(assets=EDGE_ASSETS, sensors=[often], resources={"store": StoreResource()})
