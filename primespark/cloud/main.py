"""`primespark cloud`: the gate, the relay and the API for people in one process, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from sqlalchemy import text

from primespark.cloud import (
    analytics_api,
    blobs_api,
    commands_api,
    conflicts_api,
    gate,
    lineage_api,
    otlp_api,
    people,
    records_api,
    remote_write_api,
    rules_api,
    summary_api,
)
from primespark.cloud.lanes import LaneByPath, Lanes
from primespark.cloud.notifier import Notifier
from primespark.cloud.refresher import refresh_newest
from primespark.cloud.state import Cloud
from primespark.core.logging import configure_logging, get_logger
from primespark.core.manifests import SigningKey
from primespark.core.paths import home, write_private
from primespark.core.settings import Settings
from primespark.core.web import create_app, serve
from primespark.core.web.watching import Watchers
from primespark.errors import ConfigurationError, PrimeSparkError
from primespark.store import access, database, retention
from primespark.store.analytics.answers import Answers
from primespark.store.analytics.cache import NoCache, RedisCache
from primespark.store.blobs import BlobStore
from primespark.store.schema import RETENTION_CLASSES

# A device has two: one waits for changes, one pushes.
_MAX_CONNECTIONS = 8192
_READY_DEADLINE_S = 2.0
# No request waits longer; whatever a statement still does then is for nobody.
_STATEMENT_TIMEOUT_S = 30.0
# What we make has 43; a file this short was cut off, or made by hand.
_SHORTEST_KEY = 16
_ROUTERS = (
    gate.router, blobs_api.router, blobs_api.people, commands_api.router, conflicts_api.router, lineage_api.router,
    people.router, analytics_api.router, otlp_api.router, records_api.router, remote_write_api.router,
    rules_api.router, summary_api.router,
)  # fmt: skip

log = get_logger(__name__)


def run(settings: Settings) -> None:
    """Serve until a signal.

    Raises:
        ConfigurationError: No store is set, the admin key is cut off, or the address is in use.
        UnavailableError: The store does not answer at start.
    """
    configure_logging(settings.global_, "cloud")
    cloud = build(settings, home())
    app = build_app(cloud)
    served = serve(app, settings.cloud.host, settings.cloud.port, cloud.notifier.close, _MAX_CONNECTIONS)
    asyncio.run(served)
    cloud.lanes.close()
    cloud.engine.dispose()


def build(settings: Settings, root: Path) -> Cloud:
    """The collaborators, with the schema brought up to date and the first admin key made."""
    engine = database.connect(
        settings.require_store_url(), settings.cloud.store.pool_size, statement_timeout_s=_STATEMENT_TIMEOUT_S
    )
    with database.available():
        database.migrate(engine)
        admin_key = _admin_key(root / "cloud" / "admin.key")
        with engine.begin() as connection:
            access.ensure_admin_key(connection, admin_key)
            classes = settings.cloud.retention
            retention.configure(connection, {name: getattr(classes, name).prefixes for name in RETENTION_CLASSES})
    notifier = Notifier.on(engine)
    return Cloud(
        settings=settings,
        engine=engine,
        lanes=Lanes(settings.cloud.store.pool_size),
        notifier=notifier,
        watchers=Watchers(notifier),
        answers=Answers(RedisCache(url.get_secret_value()) if (url := settings.cloud.cache.url) else NoCache()),
        blobs=BlobStore(root / "blobs"),
        signing_key=SigningKey.load_or_create(root / "cloud" / "signing.key"),
    )


def build_app(cloud: Cloud) -> FastAPI:
    """The application over its collaborators."""
    relay, publisher = _to_kafka(cloud)

    async def readiness() -> dict[str, str]:
        missing = {}
        try:
            await cloud.transact(
                lambda connection: connection.execute(text("SELECT 1")).scalar_one(), _READY_DEADLINE_S
            )
        except PrimeSparkError as error:
            missing["store"] = error.message
        if relay is not None and relay.failure is not None:
            missing["relay"] = relay.failure
        return missing

    async def summary() -> dict[str, Any]:
        missing = await readiness()
        return {"status": "degraded" if missing else "healthy", "missing": missing}

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        tasks = [
            asyncio.create_task(cloud.notifier.run(), name="notifier"),
            asyncio.create_task(refresh_newest(cloud), name="refresher"),
        ]
        if relay is not None:
            tasks.append(asyncio.create_task(relay.run(), name="relay"))
            tasks.append(asyncio.create_task(publisher.run(), name="rule-publisher"))
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    app = create_app(
        title="primespark-cloud",
        authenticate=cloud.authenticate,
        routers=_ROUTERS,
        readiness=readiness,
        summary=summary,
        max_body_bytes=cloud.settings.cloud.max_body_bytes,
        open_health=cloud.settings.security.open_health,
        lifespan=lifespan,
    )
    app.add_middleware(LaneByPath)
    app.state.cloud = cloud
    app.state.rule_publisher = publisher
    # A dry run of a rule takes a processor.
    app.state.trials = asyncio.Semaphore(1)
    return app


def _to_kafka(cloud: Cloud) -> tuple[Any, Any]:
    """What tells Kafka of facts and of rules, where there is one."""
    if not cloud.settings.features.streams or not cloud.settings.cloud.kafka.bootstrap_servers:
        log.info("relay_is_off", why="features.streams is off, or cloud.kafka.bootstrap_servers is not set")
        return None, None
    from primespark.cloud.relay import Relay
    from primespark.cloud.rule_publisher import RulePublisher

    return Relay(cloud), RulePublisher(cloud)


def _admin_key(path: Path) -> str:
    if not path.exists():
        write_private(path, secrets.token_urlsafe(32).encode())
        log.info("admin_key_made", file=str(path))
    key = path.read_text(encoding="ascii").strip()
    if len(key) < _SHORTEST_KEY:
        raise ConfigurationError(f"{path} holds no whole key", remedy="remove it: a new one is made at the next start")
    return key
