"""What starts the pipeline, and what carries its outcome to the devices.

Both wait for a commit instead of polling (see `StoreResource.wait_for`); what they decide is in `primespark.ml`.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import dagster as dg

from primespark_assets.jobs import digits_pipeline_job
from primespark_assets.ml.rollout import SensorState, Work, find_work, point_devices
from primespark_assets.ml.stage import REFUSED_TAG, learning_settings
from primespark_assets.sync.sensors import LONG_POLL_S
from resources import Later, RegistryResource, StoreResource
from resources.store import STAGE_CHANNEL

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from primespark.ml.retraining import Attempt, Start

LABELS_TAG = "primespark/labels"
ATTEMPT_TAG = "primespark/attempt"
STARTED_BY_TAG = "primespark/started_by"
_NEW_LABELS = "new_labels"
_UNDER_WAY = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


@dg.sensor(
    name=_NEW_LABELS,
    job=digits_pipeline_job,
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts the pipeline when enough new labels have come in and no more are coming.",
)
def new_labels(context: dg.SensorEvaluationContext, store: StoreResource) -> dg.RunRequest | dg.SkipReason:
    """Start a run for new labels, or another attempt of one that failed."""
    from primespark.ml import retraining
    from primespark.store import sync_log

    settings = learning_settings()

    def look(connection: Connection) -> Start | Later:
        labels = _labels(connection)
        # Asking Dagster costs more than all the rest of a tick: only where the answer can matter.
        is_enough = labels.total >= labels.learned + settings.minimum_new_labels
        last = _last_attempt(context.instance) if is_enough else None
        decision = retraining.decide(labels, last, settings.minimum_new_labels, settings.settle_s)
        return decision if isinstance(decision, retraining.Start) else Later(decision.reason, decision.look_again_s)

    decision = store.wait_for(look, LONG_POLL_S, sync_log.CHANNEL, STAGE_CHANNEL)
    if isinstance(decision, Later):
        return dg.SkipReason(decision.reason)
    return dg.RunRequest(
        run_key=f"digits/{decision.labels}/{decision.attempt}",
        tags={
            STARTED_BY_TAG: _NEW_LABELS,
            LABELS_TAG: str(decision.labels),
            ATTEMPT_TAG: str(decision.attempt),
        },
    )


@dg.sensor(
    name="promoted_model",
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Points the twin of every device at the promoted model.",
)
def promoted_model(
    context: dg.SensorEvaluationContext, store: StoreResource, registry: RegistryResource
) -> dg.SensorResult:
    """Write the promoted model into the twins that do not have it, of devices that enrolled later too."""
    state = SensorState.parse(context.cursor)
    found = store.wait_for(lambda connection: find_work(connection, state), LONG_POLL_S, STAGE_CHANNEL)
    if isinstance(found, Later):
        state = state.look_at_alias(registry)
        with store.transaction() as connection:
            found = find_work(connection, state)
    if not isinstance(found, Work):
        return dg.SensorResult(skip_reason=dg.SkipReason(found.reason), cursor=state.to_cursor())
    pointed = point_devices(store, found, context.log)
    reason = f"version {found.target.version} is desired of {pointed} more devices"
    return dg.SensorResult(skip_reason=dg.SkipReason(reason), cursor=state.after(found).to_cursor())


def _labels(connection: Connection) -> Any:
    from sqlalchemy import func, select

    from primespark.ml.datasets import DATASET
    from primespark.ml.retraining import Labels
    from primespark.store import labels, pipeline

    newest = labels.newest_received_at(connection, DATASET)
    # Both times are of the database's clock.
    now: datetime = connection.execute(select(func.clock_timestamp())).scalar_one()
    deployed = pipeline.latest(connection, "deployment")
    judged = pipeline.latest(connection, "model_validation")
    concluded = [deployed["labels"]] if deployed else []
    if judged and not judged["passed"]:
        concluded.append(judged["labels"])
    return Labels(
        total=labels.count(connection, DATASET),
        learned=max(concluded, default=0),
        quiet_s=(now - newest).total_seconds() if newest else 0.0,
    )


def _last_attempt(instance: dg.DagsterInstance) -> Attempt | None:
    from primespark.ml.retraining import Attempt, Outcome

    job = digits_pipeline_job.name
    if instance.get_run_records(dg.RunsFilter(job_name=job, statuses=_UNDER_WAY), limit=1):
        return Attempt(0, 0, Outcome.RUNNING)
    records = instance.get_run_records(dg.RunsFilter(job_name=job, tags={STARTED_BY_TAG: _NEW_LABELS}), limit=1)
    if not records:
        return None
    run = records[0].dagster_run
    outcome = Outcome.FAILED
    if run.status is dg.DagsterRunStatus.SUCCESS:
        outcome = Outcome.CONCLUDED
    elif REFUSED_TAG in run.tags or run.status is dg.DagsterRunStatus.CANCELED:
        # A verdict, or a person's will.
        outcome = Outcome.REFUSED
    return Attempt(int(run.tags[LABELS_TAG]), int(run.tags[ATTEMPT_TAG]), outcome)
