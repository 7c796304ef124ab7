"""Five strategies, asked only where neither writer had seen the other."""

from __future__ import annotations

import pytest

from edge_agent.conflict_resolver import ConflictResolver
from primespark.core.settings import StrategySettings
from primespark.sync.documents import Document, write
from primespark.sync.strategies import Strategy

BASE = write(Document(), {"a": 1, "b": 1}, replica="cloud", counter=1, hlc="1790000000000-0000-cloud")
CLOUD = write(BASE, {"a": 2, "b": 1}, replica="cloud", counter=2, hlc="1790000000009-0000-cloud")
EDGE = write(BASE, {"a": 3, "b": 3}, replica="edge-1", counter=1, hlc="1790000000005-0000-edge-1")
RESOLVER = ConflictResolver(
    [
        StrategySettings(prefix="records/", strategy="latest_wins"),
        StrategySettings(prefix="records/models/", strategy="edge_wins"),
    ]
)


@pytest.mark.parametrize(
    ("strategy", "value"),
    [
        (Strategy.LATEST_WINS, {"a": 2, "b": 1}),
        (Strategy.CLOUD_WINS, {"a": 2, "b": 1}),
        (Strategy.EDGE_WINS, {"a": 3, "b": 3}),
        (Strategy.MERGE, {"a": 2, "b": 3}),
        (Strategy.MANUAL, {"a": 2, "b": 1}),
    ],
)
def test_of_concurrent_versions_the_strategy_decides(strategy: Strategy, value: dict[str, int]) -> None:
    assert RESOLVER.detect_conflict(CLOUD, EDGE)
    stands = RESOLVER.resolve("any", CLOUD, EDGE, strategy)
    assert stands.value == value
    assert stands.vv == {"cloud": 2, "edge-1": 1}


@pytest.mark.parametrize("strategy", Strategy)
def test_who_has_seen_the_other_stands_whatever_the_clock_says(strategy: Strategy) -> None:
    # By its clock a year before what it had seen.
    follows = write(CLOUD, {"a": 9}, replica="edge-1", counter=1, hlc="1760000000000-0000-edge-1")
    assert not RESOLVER.detect_conflict(CLOUD, follows)
    assert RESOLVER.resolve("any", CLOUD, follows, strategy) == follows
    assert RESOLVER.resolve("any", follows, CLOUD, strategy) == follows


def test_the_longest_prefix_of_the_settings_names_the_strategy() -> None:
    assert RESOLVER.resolve("records/models/m", CLOUD, EDGE).value == EDGE.value
    assert RESOLVER.resolve("records/metrics/m", CLOUD, EDGE).value == CLOUD.value
    assert RESOLVER.resolve("recipe", CLOUD, EDGE).value == {"a": 2, "b": 3}
