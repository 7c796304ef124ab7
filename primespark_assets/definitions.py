"""Assembles the code location; nothing else belongs here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from primespark_assets.analytics.assets import hourly_rollup, raw_samples
from primespark_assets.jobs import digits_pipeline_job, hourly_rollup_job, retention_job, sync_batches
from primespark_assets.ml.assets import STAGES
from primespark_assets.ml.sensors import new_labels, promoted_model
from primespark_assets.schedules import hourly_rollup_schedule, retention_schedule, sync_batches_schedule
from primespark_assets.sync.assets import EDGE_ASSETS
from primespark_assets.sync.rounds import sync_round
from primespark_assets.sync.sensors import edge_batches
from resources import BlobResource, RegistryResource, StoreResource


def build_defs(resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """All definitions, fresh; nothing is connected to until a run or a tick needs it."""
    resources = {"store": StoreResource(), "blobs": BlobResource(), "registry": RegistryResource()}
    return dg.Definitions(
        assets=[*EDGE_ASSETS, sync_round, hourly_rollup, raw_samples, *STAGES],
        jobs=[hourly_rollup_job, digits_pipeline_job, sync_batches, retention_job],
        schedules=[hourly_rollup_schedule, sync_batches_schedule, retention_schedule],
        sensors=[edge_batches, new_labels, promoted_model],
        resources={**resources, **(resource_overrides or {})},
        # Every step here is light: a process for each would cost more than its work.
        executor=dg.in_process_executor,
    )


defs = build_defs()
