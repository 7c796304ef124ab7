"""A store, a state directory and a Dagster instance of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from sqlalchemy import Engine

from primespark_assets.ml import sensors as ml_sensors
from primespark_assets.sync import sensors as sync_sensors
from resources import BlobResource, RegistryResource, StoreResource
from tests.integration.store.builders import enrol


@pytest.fixture
def home(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state directory of a configured installation."""
    folder = tmp_path / "home"
    monkeypatch.setenv("PRIMESPARK_HOME", str(folder))
    monkeypatch.setenv("PRIMESPARK_CLOUD__STORE__URL", postgres_url)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """An empty Dagster."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


@pytest.fixture
def resources(home: Path) -> dict[str, Any]:
    """Those of the code location."""
    return {"store": StoreResource(), "blobs": BlobResource(), "registry": RegistryResource()}


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks that do not wait for something to do."""
    monkeypatch.setattr(sync_sensors, "LONG_POLL_S", 0.0)
    monkeypatch.setattr(ml_sensors, "LONG_POLL_S", 0.0)


@pytest.fixture
def devices(store_engine: Engine, no_waiting: None) -> None:
    """Two enrolled devices."""
    with store_engine.begin() as connection:
        enrol(connection, "edge-1")
        enrol(connection, "edge-2")
