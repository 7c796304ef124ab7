"""Laws of what stands of two concurrent versions, and of whose a leaf is."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.sync.documents import Document, Order, compare, flatten, write
from primespark.sync.regions import Region, assemble, region_of, restrict
from primespark.sync.strategies import Strategy, StrategyRule, latest_wins, resolve, strategy_of
from tests.unit.sync.test_documents import objects, replicas

versions = st.builds(
    lambda value, ms, replica, counter: write(
        Document(), value, replica=replica, counter=counter, hlc=f"{ms:013d}-0000-{replica}"
    ),
    objects,
    st.integers(0, 2),
    st.sampled_from("ab"),
    st.integers(1, 3),
)


@given(st.tuples(versions, versions, versions))
def test_latest_wins_gives_the_same_in_any_order(three: tuple[Document, Document, Document]) -> None:
    a, b, c = three
    assert latest_wins(a, a) == a
    results = {repr(_sorted(latest_wins(latest_wins(x, y), z))) for x, y, z in itertools.permutations(three)}
    results |= {repr(_sorted(latest_wins(x, latest_wins(y, z)))) for x, y, z in itertools.permutations(three)}
    assert len(results) == 1
    # The oracle: of all that were written, the one with the greatest timestamp, by sorting.
    assert latest_wins(latest_wins(a, b), c).hlc == sorted([a.hlc, b.hlc, c.hlc])[-1]


@given(replicas())
def test_no_strategy_invents_anything_or_falls_behind(documents: list[Document]) -> None:
    cloud, edge, _ = documents
    for strategy in Strategy:
        stands = resolve(strategy, cloud, edge)
        assert compare(stands.vv, cloud.vv) in (Order.AFTER, Order.EQUAL)
        assert compare(stands.vv, edge.vv) in (Order.AFTER, Order.EQUAL)
        if strategy is not Strategy.MERGE:
            assert stands.value in (cloud.value, edge.value)
        leaves = flatten(cloud.value) | flatten(edge.value)
        assert flatten(stands.value).keys() <= leaves.keys()


def test_each_strategy_takes_the_version_of_its_name() -> None:
    cloud = write(Document(), {"a": 1, "c": 1}, replica="cloud", counter=1, hlc="0000000000005-0000-cloud")
    edge = write(Document(), {"a": 2, "e": 2}, replica="edge", counter=1, hlc="0000000000003-0000-edge")
    expected = {
        Strategy.LATEST_WINS: cloud.value,
        Strategy.CLOUD_WINS: cloud.value,
        Strategy.EDGE_WINS: edge.value,
        Strategy.MERGE: {"a": 1, "c": 1, "e": 2},
        Strategy.MANUAL: cloud.value,
    }
    assert {strategy: resolve(strategy, cloud, edge).value for strategy in Strategy} == expected


@pytest.mark.parametrize(
    ("key", "strategy"),
    [
        ("twin", Strategy.MERGE), ("lamp", Strategy.LATEST_WINS), ("lamp/red", Strategy.MANUAL),
        ("lamp/red/1", Strategy.MANUAL), ("lam", Strategy.MERGE), ("same", Strategy.EDGE_WINS),
    ],
)  # fmt: skip
def test_the_longest_prefix_decides_and_of_equal_ones_the_last(key: str, strategy: Strategy) -> None:
    given = {"lamp/": "manual", "lamp": "latest_wins", "same": "edge_wins"}
    rules = [StrategyRule("configurations", "same", Strategy.CLOUD_WINS)]
    rules += [StrategyRule("configurations", prefix, Strategy(name)) for prefix, name in given.items()]
    rules.append(StrategyRule("other", "", Strategy.MANUAL))
    assert strategy_of(rules, "configurations", key) is strategy


@given(replicas())
def test_a_document_is_the_sum_of_its_regions(documents: list[Document]) -> None:
    document = documents[0]
    nested = {"desired": document.value, "reported": document.value, **document.value}
    whole = write(Document(), nested, replica="r", counter=1, hlc="0000000000001-0000-r")
    parts = [restrict(whole, region) for region in Region]
    assert assemble(parts, whole.vv, whole.hlc) == whole
    assert {region_of(pointer) for pointer in parts[2].leaf_hlc} <= {Region.SHARED}


@pytest.mark.parametrize(
    ("pointer", "region"),
    [
        ("", "desired"), ("/desired", "desired"), ("/desired/x", "desired"), ("/reported/x", "reported"),
        ("/desiredx", "shared"), ("/", "shared"), ("/x/desired", "shared"), ("/shared", "shared"),
    ],
)  # fmt: skip
def test_whose_a_leaf_is(pointer: str, region: str) -> None:
    assert region_of(pointer) == Region(region)


def _sorted(document: Document) -> tuple[object, ...]:
    return sorted(document.vv.items()), document.value, sorted(document.leaf_hlc.items()), document.hlc
