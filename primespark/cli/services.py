"""Running one service in the foreground."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

from primespark.core.extras import how_to_add
from primespark.core.settings import Settings
from primespark.errors import MissingDependencyError

GROUP = "primespark.commands"


def run_cloud(settings: Settings) -> None:
    """The cloud API, until a signal."""
    try:
        from primespark.cloud.main import run
    except ModuleNotFoundError as error:
        raise _missing(error, "cloud") from error
    run(settings)


def run_room(name: str, extra: str, settings: Settings) -> Any:
    """A service of a room nothing imports, or what else it offers to commands, found by its entry point."""
    (entry,) = entry_points(group=GROUP, name=name)
    try:
        run = entry.load()
    except ModuleNotFoundError as error:
        raise _missing(error, extra) from error
    return run(settings)


def _missing(error: ModuleNotFoundError, extra: str) -> MissingDependencyError:
    return MissingDependencyError(f"the Python package {error.name} is not installed", remedy=how_to_add(extra))
