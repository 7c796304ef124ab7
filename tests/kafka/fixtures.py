"""Session fixtures; a conftest imports what it needs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kafka import brokers


@pytest.fixture(scope="session")
def embedded_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[brokers.Broker]:
    """The small broker that `primespark up` starts."""
    try:
        with brokers.embedded_broker(tmp_path_factory.mktemp("embedded-kafka")) as broker:
            yield broker
    except brokers.ToolMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def apache_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[brokers.Broker]:
    """A real Apache Kafka node."""
    try:
        with brokers.apache_kafka(tmp_path_factory.mktemp("apache-kafka")) as broker:
            yield broker
    except brokers.ToolMissingError as error:
        pytest.skip(str(error))
