"""A device's HTTP application: its routes, what they share, and what is told of its health."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from edge_agent import (
    api,
    cache_api,
    capture_api,
    dead_letters_api,
    examples_api,
    openai_api,
    preprocess_api,
    records_api,
    service_manager,
)
from edge_agent.api import Device
from edge_agent.cache.build import build_cache, running
from edge_agent.cache.manager import EdgeCacheManager
from edge_agent.capture.picture_store import PictureKind
from edge_agent.capture_api import CaptureParts
from edge_agent.credentials import LocalKey
from edge_agent.database import Database
from edge_agent.dead_letters import DeadLetters
from edge_agent.example_labels import ExampleLabels
from edge_agent.open_inference import routes as open_inference
from edge_agent.preprocessing_pipeline import EdgePreprocessingPipeline
from edge_agent.preprocessors import AudioPreprocessor, ImagePreprocessor
from edge_agent.uploads import routes as upload_routes
from primespark.core.logging import get_logger
from primespark.core.settings import EdgeSettings, Settings
from primespark.core.web import create_app
from primespark.inference.models import ServedModel

_ROUTERS = (
    api.router,
    cache_api.router,
    capture_api.router,
    dead_letters_api.router,
    examples_api.router,
    openai_api.router,
    open_inference.router,
    preprocess_api.router,
    records_api.router,
    upload_routes.router,
)

log = get_logger(__name__)


def build_app(
    settings: Settings,
    folder: Path,
    database: Database,
    device: Device,
    detector: Future[ServedModel | None],
    sight: CaptureParts,
) -> FastAPI:
    """The application of a device.

    Args:
        settings: Of the device.
        folder: Its state.
        database: Its queue's; not ready while that fails.
        device: What most routes work with.
        detector: The bundled detector, loading; not ready until it is.
        sight: What it looks at.
    """
    edge, open_health = settings.edge, settings.security.open_health
    cache = build_cache(edge.cache, folder / "cache", edge.device_id) if settings.features.cache else None
    health = _Health(device, database, detector, sight)
    app = create_app(
        title="primespark-edge",
        authenticate=LocalKey(folder).authenticate,
        routers=[*_ROUTERS, open_inference.health_router(health.readiness, open_health)],
        readiness=health.readiness,
        summary=health.summary,
        max_body_bytes=edge.inference.max_body_bytes,
        open_health=open_health,
        lifespan=_lifespan(edge, cache),
        problem_members={"/v1": openai_api.error_members, open_inference.PREFIX: open_inference.error_members},
    )
    _share(app, edge, database, device, sight, cache)
    return app


class _Health:
    """What `/readyz` and `/health` tell.

    Args:
        device: Its models and its link to the cloud.
        database: Its queue's.
        detector: The bundled one, loading.
        sight: Its sources.
    """

    def __init__(
        self, device: Device, database: Database, detector: Future[ServedModel | None], sight: CaptureParts
    ) -> None:
        self._device = device
        self._database = database
        self._detector = detector
        self._sight = sight

    async def readiness(self) -> dict[str, str]:
        """What is not ready, cause by name."""
        missing = {}
        if self._database.failure is not None:
            missing["queue"] = self._database.failure
        if not self._detector.done():
            missing["detector"] = "loading"
        elif (error := self._detector.exception()) is not None:
            missing["detector"] = str(error)
        return missing

    async def summary(self) -> dict[str, Any]:
        """The device in a few words."""
        device, capture = self._device, self._sight.capture
        missing, state = await self.readiness(), device.exchange.state if device.exchange else None
        sources = dict(capture.sources) if capture else {}
        standing_by = {name: slot.model.fault for name, slot in device.service.slots.items() if slot.model.fault}
        faults = {name: source.fault or source.frame_fault for name, source in sources.items()}
        faults = {name: fault for name, fault in faults.items() if fault}
        return {
            "status": "degraded" if missing or faults or standing_by else "healthy", "missing": missing,
            "sources_failed": faults, "models_standing_by": standing_by,
            "sources": {name: source.state for name, source in sources.items()},
            "device_id": device.device_id, "cloud": state.phase if state else "alone",
        }  # fmt: skip


def _lifespan(
    edge: EdgeSettings, cache: EdgeCacheManager | None
) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The address is bound by now.
        log.info("listening", url=_url(edge.host, edge.port))
        service_manager.tell("READY=1")
        async with running(cache):
            yield

    return lifespan


def _share(
    app: FastAPI,
    edge: EdgeSettings,
    database: Database,
    device: Device,
    sight: CaptureParts,
    cache: EdgeCacheManager | None,
) -> None:
    """Put what the routes ask for where they find it."""
    app.state.device = device
    app.state.capture_parts = sight
    app.state.example_labels = ExampleLabels(sight.pictures[PictureKind.EXAMPLE], device.queue, edge.capture.images)
    app.state.dead_letters = DeadLetters(database, device.queue)
    app.state.cache = cache
    app.state.preprocessing = EdgePreprocessingPipeline(
        ImagePreprocessor(edge.inference.max_image_pixels), AudioPreprocessor(edge.inference.max_audio_s)
    )


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
