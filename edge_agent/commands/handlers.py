"""The commands a device knows. Each is a function that is there for other callers too."""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from edge_agent import service_manager
from edge_agent.cache.manager import EdgeCacheManager
from edge_agent.cache.tiers import CacheTier
from primespark.errors import ConflictError, InvalidInputError
from primespark.sync.records import Message

Arguments = TypeVar("Arguments", bound=Message)


@dataclass(frozen=True, slots=True)
class Handler:
    """How a command is run.

    Attributes:
        run: Given the arguments, what it gives; raises an error of our tree where it fails.
        is_idempotent: Run again where a kill leaves open whether it was.
        after: Done once the answer is on disk; for what ends the process.
    """

    run: Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
    is_idempotent: bool = False
    after: Callable[[], None] | None = None


class _NoArguments(Message):
    pass


class _ClearCache(Message):
    tier: Annotated[CacheTier | None, Field(strict=False)] = None


def handlers_of(synchronise: Callable[[], None], cache: EdgeCacheManager | None) -> Mapping[str, Handler]:
    """All commands by name.

    Args:
        synchronise: Push and pull without waiting.
        cache: Of the device; None where it has none.
    """

    async def sync_now(given: dict[str, Any]) -> dict[str, Any]:
        _parse(given, _NoArguments)
        synchronise()
        return {}

    async def clear_cache(given: dict[str, Any]) -> dict[str, Any]:
        tier = _parse(given, _ClearCache).tier
        if cache is None:
            raise ConflictError("this device has no cache", remedy="set features.cache", code="no_cache")
        return {"cleared": dict(await cache.clear(tier))}

    return {
        "sync_now": Handler(sync_now, is_idempotent=True),
        "clear_cache": Handler(clear_cache, is_idempotent=True),
        "restart": Handler(_restart, after=lambda: os.kill(os.getpid(), signal.SIGTERM)),
    }


async def _restart(given: dict[str, Any]) -> dict[str, Any]:
    _parse(given, _NoArguments)
    if not service_manager.is_supervised():
        raise ConflictError(
            "nothing would start this device again", remedy="run it as a service of systemd", code="not_supervised"
        )
    return {}


def _parse(given: dict[str, Any], model: type[Arguments]) -> Arguments:
    try:
        return model.model_validate(given)
    except ValidationError as error:
        fault = error.errors()[0]
        where = "/".join(map(str, fault["loc"]))
        raise InvalidInputError(
            f"arguments: {where}: {fault['msg']}"[:200], remedy="see docs/sync.md", code="bad_arguments"
        ) from None
