"""Rounds of the cloud's side of the exchange as an asset, and what its checks say of the fleet."""

# Without postponed annotations: Dagster looks at the type of `context` itself.

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg

from primespark_assets.sync.assets import EDGE_ASSETS
from resources import BlobResource, StoreResource

if TYPE_CHECKING:
    from primespark.core.settings import SyncSettings
    from primespark.store.backlogs import Backlog
    from primespark.store.rounds import Round, Rules

    Shown = dg.MaterializeResult[None]
else:
    # Dagster does not recognise the generic form beside a check.
    Shown = dg.MaterializeResult

ROUND = dg.AssetKey(["sync", "round"])
_MAX_NAMED = 100
_CHECKS = {
    "no_sequence_gaps": "Every fact that was acknowledged is stored, or on record as lost.",
    "no_open_conflicts": "No document is frozen until somebody decides between two versions of it.",
    "no_dead_letters": "No device holds records that were refused for good.",
    "nothing_waits_too_long": "No device says that a fact has waited for the cloud for too long.",
}


@dg.asset(
    key=ROUND,
    group_name="sync",
    deps=EDGE_ASSETS,
    kinds={"postgres"},
    check_specs=[dg.AssetCheckSpec(name, asset=ROUND, description=text) for name, text in _CHECKS.items()],
)
def sync_round(context: dg.AssetExecutionContext, store: StoreResource, blobs: BlobResource) -> Shown:
    """What came in since the last round; overdue devices marked, waiting ones woken, remains removed."""
    from primespark.core.clock import utc_now
    from primespark.core.settings import load_settings
    from primespark.store import backlogs, blob_collection, commands, conflicts, rounds, uploads

    settings, now = load_settings().sync, utc_now()
    with store.transaction() as connection:
        found = rounds.close_round(connection, now, _rules(settings))
        told, undecided = backlogs.read(connection), conflicts.waiting(connection)
        conflicts.collect(connection, now, timedelta(days=settings.conflict_days))
        uploads.forget_old(connection, now, timedelta(days=settings.blob_days))
        commands.collect(connection, now, timedelta(days=settings.command_days))
    with store.transaction() as connection:
        removed = blob_collection.collect(connection, blobs.store(), now, timedelta(days=settings.blob_days))
    for device_id in found.overdue[:_MAX_NAMED]:
        context.log.warning("%s is overdue", device_id)
    oldest = now - timedelta(seconds=settings.backlog_warning_s)
    checks = [
        _check("no_sequence_gaps", dg.AssetCheckSeverity.ERROR, found.gaps),
        _check("no_open_conflicts", dg.AssetCheckSeverity.WARN, undecided),
        _check("no_dead_letters", dg.AssetCheckSeverity.WARN, [entry for entry in told if entry.dead_letters]),
        _check(
            "nothing_waits_too_long",
            dg.AssetCheckSeverity.WARN,
            [entry for entry in told if entry.oldest_at and entry.oldest_at < oldest],
            oldest_age_s=_oldest_age_s(told, now),
        ),
    ]
    return dg.MaterializeResult(metadata=_metadata(found, removed), check_results=checks)


def _rules(settings: "SyncSettings") -> "Rules":
    from primespark.store.rounds import Rules

    return Rules(
        overdue_after=timedelta(seconds=settings.overdue_after_s),
        tombstone_age=timedelta(days=settings.tombstone_days),
        inactive_after=timedelta(days=settings.cursor_inactive_days),
    )


def _oldest_age_s(told: "Iterable[Backlog]", now: datetime) -> float:
    return max([(now - entry.oldest_at).total_seconds() for entry in told if entry.oldest_at], default=0.0)


def _check(
    name: str, severity: dg.AssetCheckSeverity, culprits: Sequence[Any], **figures: float
) -> dg.AssetCheckResult:
    """Passed where there is no culprit; else the first hundred, with what is known of each."""
    from pydantic_core import to_jsonable_python

    named = to_jsonable_python(list(culprits[:_MAX_NAMED]))
    return dg.AssetCheckResult(
        passed=not culprits,
        check_name=name,
        severity=severity,
        metadata={"found": len(culprits), "culprits": dg.MetadataValue.json(named), **figures},
    )


def _metadata(found: "Round", removed_blobs: int) -> dict[str, Any]:
    folded = found.folded
    return {
        "log_from": folded.log_from, "log_to": folded.log_to, "devices": folded.devices, "batches": folded.batches,
        "facts": folded.facts, "document_changes": folded.documents,
        "overdue_count": len(found.overdue),
        "overdue": dg.MetadataValue.json(list(found.overdue[:_MAX_NAMED])),
        "woken": dg.MetadataValue.json(list(found.woken[:_MAX_NAMED])),
        "removed_tombstones": found.tombstones, "removed_blobs": removed_blobs,
    }  # fmt: skip
