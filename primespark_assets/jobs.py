"""Jobs: what is launched together."""

from __future__ import annotations

import dagster as dg

from primespark_assets.analytics.assets import hourly_rollup, raw_samples
from primespark_assets.ml.assets import STAGES
from primespark_assets.sync.rounds import sync_round

# A run whose process was killed stays "started" until run monitoring gives it up; until then no other may start.
_MAX_RUNTIME_S = 300

hourly_rollup_job = dg.define_asset_job(
    "hourly_rollup_job",
    selection=[hourly_rollup],
    description="Roll up the samples of one or more hours.",
    tags={"dagster/max_runtime": str(_MAX_RUNTIME_S)},
)

retention_job = dg.define_asset_job(
    "retention_job",
    selection=[raw_samples],
    description="Drop samples that are older than their class allows.",
    tags={"dagster/max_runtime": str(_MAX_RUNTIME_S)},
)

digits_pipeline_job = dg.define_asset_job(
    "digits_pipeline_job",
    selection=dg.AssetSelection.assets(*STAGES),
    description="From labels to a better digit reader in service, or to the reason why not.",
    tags={"dagster/max_runtime": str(_MAX_RUNTIME_S)},
)

sync_batches = dg.define_asset_job(
    "sync_batches",
    selection=[sync_round],
    description="Close a round of the cloud's side of the exchange; it calls no device.",
    tags={"dagster/max_runtime": str(_MAX_RUNTIME_S)},
)
