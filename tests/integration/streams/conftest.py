"""A stage for each test: a broker, a store, and topics of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.streams.stage import Stage
from tests.kafka.brokers import Broker
from tests.kafka.fixtures import apache_kafka, embedded_broker

__all__ = ["apache_kafka", "broker", "embedded_broker", "stage"]


@pytest.fixture(params=["embedded_broker", "apache_kafka"])
def broker(request: pytest.FixtureRequest) -> Broker:
    """Each broker in turn."""
    broker: Broker = request.getfixturevalue(request.param)
    return broker


@pytest.fixture
def stage(broker: Broker, postgres_url: str, tmp_path: Path) -> Iterator[Stage]:
    """Broker and store, with no worker running yet; what is left running is ended."""
    stage = Stage(broker, postgres_url, tmp_path)
    yield stage
    stage.close()
