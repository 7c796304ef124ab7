"""Laws of documents and version vectors."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primespark.core.clock import HybridLogicalClock, Timestamp
from primespark.errors import InvalidInputError
from primespark.sync.documents import (
    Document,
    Order,
    compare,
    flatten,
    join,
    merge,
    merge_patch,
    unflatten,
    write,
)

keys = st.sampled_from(["a", "b", "a/b", "~", ""])
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=3)  # what a store can keep
scalars = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), texts, st.lists(st.integers(0, 3)))
trees = st.recursive(scalars, lambda inner: st.dictionaries(keys, inner, max_size=3), max_leaves=8)
objects = st.dictionaries(keys, trees, max_size=3)
vectors = st.dictionaries(st.sampled_from("xyz"), st.integers(1, 4))


@st.composite
def replicas(draw: st.DrawFn) -> list[Document]:
    """Three replicas that wrote and merged at random, each with a clock that reads what it likes."""
    documents = [Document(), Document(), Document()]
    now = [0]
    clocks = [HybridLogicalClock(f"r{at}", lambda: now[0]) for at in range(3)]
    for step in range(draw(st.integers(1, 8))):
        at, now[0] = draw(st.integers(0, 2)), draw(st.integers(0, 3))
        if draw(st.booleans()):
            hlc = str(clocks[at].stamp())
            documents[at] = write(documents[at], draw(objects), replica=f"r{at}", counter=step + 1, hlc=hlc)
        else:
            documents[at] = merge(documents[at], documents[draw(st.integers(0, 2))])
            if documents[at].hlc:
                clocks[at].observe(Timestamp.parse(documents[at].hlc))
    return documents


@st.composite
def documents_of_wrong_clocks(draw: st.DrawFn) -> Document:
    """What a writer left whose clock gave one stamp to several writes."""
    leaves, removed = flatten(draw(objects)), flatten(draw(objects)).keys()
    stamps = st.sampled_from([_hlc(1, "e"), _hlc(2, "e")])
    leaf_hlc = {pointer: draw(stamps) for pointer in sorted(leaves.keys() | removed)}
    return merge(Document(), Document(unflatten(leaves), {}, leaf_hlc))


@pytest.mark.prove
@given(st.tuples(*[documents_of_wrong_clocks()] * 3))
def test_merge_keeps_its_laws_where_stamps_are_equal(documents: tuple[Document, Document, Document]) -> None:
    a, b, c = documents
    assert repr(_canonical(merge(a, a))) == repr(_canonical(a))
    everywhere = {repr(_canonical(merge(merge(x, y), z))) for x, y, z in itertools.permutations(documents)}
    everywhere |= {repr(_canonical(merge(x, merge(y, z)))) for x, y, z in itertools.permutations(documents)}
    everywhere.add(repr(_canonical(merge(merge(a, b), merge(merge(b, c), a)))))
    assert len(everywhere) == 1


def test_of_two_leaves_of_one_stamp_the_deeper_stands() -> None:
    stamp = _hlc(1, "e")
    above = Document({"a": 1}, {"e": 1}, {"/a": stamp})
    below = Document({"a": {"b": 1}}, {"e": 2}, {"/a/b": stamp})
    assert merge(above, below) == merge(below, above)
    assert merge(above, below).value == {"a": {"b": 1}}


def test_one_write_that_puts_a_leaf_above_removed_ones_stands() -> None:
    old = write(Document(), {"a": {"b": 1}}, replica="c", counter=1, hlc=_hlc(1, "c"))
    new = write(old, {"a": 2}, replica="c", counter=2, hlc=_hlc(2, "c"))
    assert merge(old, new).value == {"a": 2}


def test_what_could_not_travel_is_forgotten_when_it_is_removed() -> None:
    poisoned = Document({"a\nb": 1, "c": 1}, {"e": 1}, {"/a\nb": _hlc(1, "e"), "/c": _hlc(1, "e")})
    with pytest.raises(InvalidInputError):
        write(poisoned, {"a\nb": 1, "c": 2}, replica="e", counter=2, hlc=_hlc(2, "e"))
    assert write(poisoned, {}, replica="e", counter=2, hlc=_hlc(2, "e")).leaf_hlc == {"/c": _hlc(2, "e")}


@pytest.mark.prove
@given(replicas())
def test_merge_is_commutative_associative_and_idempotent(documents: list[Document]) -> None:
    a, b, c = documents
    assert merge(a, a) == a
    assert merge(a, b) == merge(b, a)
    assert merge(merge(a, b), c) == merge(a, merge(b, c))
    everywhere = {repr(_canonical(merge(merge(x, y), z))) for x, y, z in itertools.permutations(documents)}
    assert len(everywhere) == 1


@pytest.mark.prove
@given(replicas(), objects)
def test_a_write_that_saw_everything_stands_as_written(documents: list[Document], value: dict[str, Any]) -> None:
    seen = merge(merge(*documents[:2]), documents[2])
    latest = write(seen, value, replica="r9", counter=1, hlc=str(Timestamp(9, 0, "r9")))
    for document in documents:
        assert merge(document, latest).value == value


def test_writes_to_different_leaves_both_stand() -> None:
    first = {"desired": {"rate": 1}, "reported": {"rate": 1}}
    base = write(Document(), first, replica="c", counter=1, hlc=_hlc(1, "c"))
    cloud = write(base, {"desired": {"rate": 2}, "reported": {"rate": 1}}, replica="c", counter=2, hlc=_hlc(2, "c"))
    edge = write(base, {"desired": {"rate": 1}, "reported": {"rate": 9}}, replica="e", counter=1, hlc=_hlc(3, "e"))
    assert merge(cloud, edge).value == {"desired": {"rate": 2}, "reported": {"rate": 9}}


def test_a_removed_leaf_does_not_come_back() -> None:
    old = write(Document(), {"a": {"b": 1}}, replica="c", counter=1, hlc=_hlc(1, "c"))
    gone = write(old, {}, replica="c", counter=2, hlc=_hlc(2, "c"))
    assert merge(old, gone).value == {}


@pytest.mark.prove
@given(objects)
def test_flatten_and_unflatten_are_inverse(value: dict[str, Any]) -> None:
    assert unflatten(flatten(value)) == value


def test_too_deep_documents_are_refused() -> None:
    value: dict[str, Any] = {}
    for _ in range(40):
        value = {"a": value}
    with pytest.raises(InvalidInputError) as caught:
        flatten({"a": value})
    assert caught.value.code == "document_too_deep"


@pytest.mark.prove
@given(vectors, vectors)
def test_version_vectors_are_a_lattice(left: dict[str, int], right: dict[str, int]) -> None:
    upper = join(left, right)
    assert upper == join(right, left)
    assert compare(left, upper) in {Order.EQUAL, Order.BEFORE}
    mirrored = {Order.BEFORE: Order.AFTER, Order.AFTER: Order.BEFORE}
    order = compare(left, right)
    assert compare(right, left) == mirrored.get(order, order)
    assert (order in {Order.EQUAL, Order.BEFORE}) == (upper == right)


# The examples of RFC 7396, appendix A.
@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch(target: Any, patch: Any, result: Any) -> None:
    assert merge_patch(target, patch) == result


def _hlc(unix_ms: int, replica: str) -> str:
    return str(Timestamp(unix_ms, 0, replica))


def _canonical(document: Document) -> Any:
    leaves = sorted(flatten(document.value).items(), key=repr)
    return leaves, sorted(document.leaf_hlc.items()), sorted(document.vv.items())
