"""What all slots of a device share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from edge_agent.slots.download import BlobFolder, BlobSource
from edge_agent.slots.in_service import Slots
from edge_agent.slots.stages import Verified
from edge_agent.slots.state import StateFiles
from primespark.core.settings import EdgeSettings
from primespark.core.variants import Runtime
from primespark.inference.models import Model, ServedModel


@dataclass(frozen=True, slots=True)
class Shelf:
    """What all slots of a device share.

    Attributes:
        slots: Models in service.
        blobs: Files of models.
        files: What is kept of each.
        source: Where blobs come from now; None without a cloud.
        trusted: Keys that may sign now.
        is_idle: Whether no inference waits.
        report: Writes `reported.models.<name>`.
        tidy: Removes blobs that no slot needs.
        chip: What the accelerator runs; None without one.
        serve: A version as it is served, from its model on the processor.
        settings: Of the device.
        one_trial: Held by the only version that is tried.
    """

    slots: Slots
    blobs: BlobFolder
    files: StateFiles
    source: Callable[[], BlobSource | None]
    trusted: Callable[[], dict[str, bytes]]
    is_idle: Callable[[], bool]
    report: Callable[[str, dict[str, Any]], Awaitable[None]]
    tidy: Callable[[], None]
    chip: Callable[[], Runtime | None]
    serve: Callable[[Verified, ServedModel], Model]
    settings: EdgeSettings
    one_trial: asyncio.Lock
