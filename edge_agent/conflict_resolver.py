"""What stands of two versions of a record, as the cloud decides it."""

from __future__ import annotations

from collections.abc import Sequence

from primespark.core.settings import StrategySettings
from primespark.sync.documents import Document, Order, compare
from primespark.sync.strategies import Strategy, StrategyRule, resolve, strategy_of


class ConflictResolver:
    """Decides by `sync.strategies`.

    Args:
        settings: Strategies by prefix of the key; `merge` where there is none.
    """

    def __init__(self, settings: Sequence[StrategySettings] = ()) -> None:
        self._rules = [StrategyRule(rule.data_class, rule.prefix, Strategy(rule.strategy)) for rule in settings]

    def strategy(self, key: str) -> Strategy:
        """The strategy of a key."""
        return strategy_of(self._rules, "configurations", key)

    def detect_conflict(self, cloud: Document, edge: Document) -> bool:
        """Whether neither writer had seen the other's version, whatever the clocks say."""
        return compare(cloud.vv, edge.vv) is Order.CONCURRENT

    def resolve(self, key: str, cloud: Document, edge: Document, strategy: Strategy | None = None) -> Document:
        """What stands: the version that has seen the other, else as the strategy has it; under `manual` the cloud's."""
        order = compare(cloud.vv, edge.vv)
        if order is Order.CONCURRENT:
            return resolve(strategy or self.strategy(key), cloud, edge)
        return edge if order is Order.BEFORE else cloud
