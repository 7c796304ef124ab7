"""What stands of two concurrent versions of a document.

Version vectors decide first: a write that saw the other stands, whatever the clocks say. A strategy is asked only where
neither saw the other. `merge` and `latest_wins` give the same at every replica, in any order; `cloud_wins` and
`edge_wins` mean something only where cloud and edge meet, at the cloud.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from primespark.sync.documents import Document, join, merge


class Strategy(StrEnum):
    """How concurrent versions become one."""

    LATEST_WINS = "latest_wins"
    CLOUD_WINS = "cloud_wins"
    EDGE_WINS = "edge_wins"
    MERGE = "merge"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class StrategyRule:
    """The strategy of the documents of a class whose keys begin with `prefix`."""

    data_class: str
    prefix: str
    strategy: Strategy


def strategy_of(rules: Sequence[StrategyRule], data_class: str, key: str) -> Strategy:
    """That of the longest prefix of `key`; of equal ones the last; `merge` where there is none."""
    fitting = [rule for rule in rules if rule.data_class == data_class and key.startswith(rule.prefix)]
    return max(reversed(fitting), key=lambda rule: len(rule.prefix)).strategy if fitting else Strategy.MERGE


def resolve(strategy: Strategy, cloud: Document, edge: Document) -> Document:
    """The version that follows both; under `manual` the cloud's stands until somebody decides.

    All but `merge` take one version whole. The answer's version vector is after both.
    """
    if strategy is Strategy.MERGE:
        return merge(cloud, edge)
    if strategy is Strategy.LATEST_WINS:
        return latest_wins(cloud, edge)
    winner = edge if strategy is Strategy.EDGE_WINS else cloud
    return replace(winner, vv=join(cloud.vv, edge.vv))


def latest_wins(left: Document, right: Document) -> Document:
    """The version written last, by hybrid logical clock; its string ends with the replica, so no two are equal.

    Where a wrong clock gave one timestamp twice, the one that is greater as JSON text stands.
    """
    is_left = left.hlc > right.hlc if left.hlc != right.hlc else _text(left) > _text(right)
    return replace(left if is_left else right, vv=join(left.vv, right.vv))


def _text(document: Document) -> tuple[str, str]:
    return json.dumps(document.value, sort_keys=True), json.dumps(document.leaf_hlc, sort_keys=True)
