"""Each policy against a straightforward model of it: the same keys kept, the same let go, after any history."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.cache.policies import EvictingMap, make_map
from primespark.core.cache_settings import CachePolicy

CAPACITY = 100
EVER = float("inf")


@dataclass(slots=True)
class Entry:
    """An entry of a model."""

    weight: int
    used: int = 0
    uses: int = 0
    rank: float = 0
    expires: float = EVER
    placed: int = 0
    is_main: bool = False


@dataclass(slots=True)
class Model:
    """Entries in a dict, looked through from one end to the other for each choice."""

    entries: dict[str, Entry] = field(default_factory=dict)
    age: float = 0
    now: int = 0
    ghosts: list[tuple[str, int]] = field(default_factory=list)


class Law(Protocol):
    """One policy, by the book."""

    def hit(self, model: Model, entry: Entry) -> None: ...

    def add(self, model: Model, key: str, entry: Entry, old: Entry | None, was_ghost: bool) -> None: ...

    def choose(self, model: Model) -> str: ...


class Lru:
    def hit(self, model: Model, entry: Entry) -> None:
        entry.used = model.now

    def add(self, model: Model, key: str, entry: Entry, old: Entry | None, was_ghost: bool) -> None:
        entry.used = model.now

    def choose(self, model: Model) -> str:
        return min(model.entries, key=lambda key: model.entries[key].used)


class Lfu:
    def hit(self, model: Model, entry: Entry) -> None:
        entry.uses, entry.used = entry.uses + 1, model.now
        entry.rank = entry.uses + model.age

    def add(self, model: Model, key: str, entry: Entry, old: Entry | None, was_ghost: bool) -> None:
        entry.uses = old.uses if old else 0
        self.hit(model, entry)

    def choose(self, model: Model) -> str:
        victim = min(model.entries, key=lambda key: (model.entries[key].rank, model.entries[key].used))
        model.age = model.entries[victim].rank
        return victim


class Ttl:
    def hit(self, model: Model, entry: Entry) -> None:
        pass

    def add(self, model: Model, key: str, entry: Entry, old: Entry | None, was_ghost: bool) -> None:
        entry.placed = model.now

    def choose(self, model: Model) -> str:
        return min(model.entries, key=lambda key: (model.entries[key].expires, model.entries[key].placed))


class S3Fifo:
    def hit(self, model: Model, entry: Entry) -> None:
        entry.uses = min(3, entry.uses + 1)

    def add(self, model: Model, key: str, entry: Entry, old: Entry | None, was_ghost: bool) -> None:
        entry.placed, entry.uses = model.now, old.uses if old else 0
        entry.is_main = was_ghost or (old is not None and old.is_main)

    def choose(self, model: Model) -> str:
        while True:
            queues = {
                is_main: sorted(
                    (key for key, entry in model.entries.items() if entry.is_main is is_main),
                    key=lambda key: model.entries[key].placed,
                )
                for is_main in (False, True)
            }
            small_weight = sum(model.entries[key].weight for key in queues[False])
            model.now += 1
            if queues[False] and (small_weight >= CAPACITY // 10 or not queues[True]):
                key = queues[False][0]
                entry = model.entries[key]
                if entry.uses < 1:
                    model.ghosts.append((key, entry.weight))
                    while sum(weight for _, weight in model.ghosts) > CAPACITY - CAPACITY // 10:
                        del model.ghosts[0]
                    return key
                entry.uses, entry.is_main, entry.placed = 0, True, model.now
            else:
                key = queues[True][0]
                entry = model.entries[key]
                if entry.uses == 0:
                    return key
                entry.uses, entry.placed = entry.uses - 1, model.now


LAWS: dict[CachePolicy, Law] = {
    CachePolicy.LRU: Lru(), CachePolicy.LFU: Lfu(), CachePolicy.TTL: Ttl(), CachePolicy.S3FIFO: S3Fifo()
}  # fmt: skip

KEYS = st.sampled_from("abcdefghijklmnop")
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("get"), KEYS, st.just(0), st.just(0)),
        st.tuples(st.just("put"), KEYS, st.integers(1, 120), st.one_of(st.just(EVER), st.integers(1, 5))),
        st.tuples(st.just("put"), KEYS, st.integers(1, 25), st.just(EVER)),
        st.tuples(st.just("pop"), KEYS, st.just(0), st.just(0)),
    ),
    max_size=120,
)


def put(model: Model, law: Law, key: str, entry: Entry) -> bool:
    was_ghost = any(name == key for name, _ in model.ghosts)
    model.ghosts = [ghost for ghost in model.ghosts if ghost[0] != key]
    old = model.entries.pop(key, None)
    if entry.weight > CAPACITY:
        return False
    while sum(held.weight for held in model.entries.values()) + entry.weight > CAPACITY:
        del model.entries[law.choose(model)]
    model.now += 1
    model.entries[key] = entry
    law.add(model, key, entry, old, was_ghost)
    return True


@pytest.mark.parametrize("policy", LAWS)
@given(steps=STEPS)
def test_it_keeps_and_lets_go_what_the_model_does(
    policy: CachePolicy, steps: list[tuple[str, str, int, float]]
) -> None:
    real: EvictingMap[int] = make_map(policy, CAPACITY)
    model, law = Model(), LAWS[policy]
    for number, (verb, key, weight, expires) in enumerate(steps):
        model.now += 1
        if verb == "put":
            assert real.put(key, number, weight, expires) == put(model, law, key, Entry(weight, expires=expires))
        elif verb == "pop":
            assert (real.pop(key) is None) == (model.entries.pop(key, None) is None)
        else:
            known = model.entries.get(key)
            assert (real.get(key) is None) == (known is None)
            if known is not None:
                law.hit(model, known)
        assert {name for name in "abcdefghijklmnop" if name in real} == set(model.entries)
        assert (len(real), real.weight) == (
            len(model.entries),
            sum(entry.weight for entry in model.entries.values()),
        )
        assert real.weight <= CAPACITY


@pytest.mark.parametrize("policy", LAWS)
def test_bookkeeping_is_bounded_by_what_is_held(policy: CachePolicy) -> None:
    real: EvictingMap[int] = make_map(policy, CAPACITY)
    real.put("cold", 0, 1)
    for number in range(20_000):
        real.put("hot", number, 1, number)
        real.get("hot")
        real.put(f"once-{number % 50}", number, 1, number)
        real.pop(f"once-{number % 50}")
    sizes = [len(part) for part in vars(real).values() if hasattr(part, "__len__")]
    assert max(sizes) < 300
