"""Eviction policies to compare with, each as its paper or its name says, and traces of keys."""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Protocol

import numpy as np

from edge_agent.cache.policies import EvictingMap, make_map
from primespark.core.cache_settings import CachePolicy

KEYS = 50_000
REQUESTS = 300_000
# The first of them fill the cache and are not counted.
WARM_UP = REQUESTS // 6
SLOTS = (KEYS // 100, KEYS // 10)
_SEED = 20260101

Trace = list[str]


class Peer(Protocol):
    """A cache of keys; each weighs the same."""

    def request(self, key: str) -> bool:
        """Whether the key was there; afterwards it is, or was not admitted."""


class Ours:
    """One of the device's policies, every key of weight 1."""

    def __init__(self, policy: CachePolicy, slots: int) -> None:
        self._map: EvictingMap[bool] = make_map(policy, slots)

    def request(self, key: str) -> bool:
        """See `Peer`."""
        return self._map.get(key) or not self._map.put(key, True, 1)


class Lru:
    """The least recently used goes."""

    def __init__(self, slots: int) -> None:
        self._slots, self._order = slots, OrderedDict[str, None]()

    def request(self, key: str) -> bool:
        """See `Peer`."""
        if key in self._order:
            self._order.move_to_end(key)
            return True
        if len(self._order) == self._slots:
            self._order.popitem(last=False)
        self._order[key] = None
        return False


class Lfu:
    """The least often used since it came goes, the longest unused of equals."""

    def __init__(self, slots: int) -> None:
        self._slots, self._uses, self._now = slots, dict[str, tuple[int, int]](), 0
        self._heap: list[tuple[int, int, str]] = []

    def request(self, key: str) -> bool:
        """See `Peer`."""
        known = self._uses.get(key)
        if known is None and len(self._uses) == self._slots:
            while True:
                uses, used, victim = heapq.heappop(self._heap)
                if self._uses.get(victim) == (uses, used):
                    del self._uses[victim]
                    break
        self._now += 1
        rank = (known[0] + 1 if known else 1, self._now)
        self._uses[key] = rank
        heapq.heappush(self._heap, (*rank, key))
        return known is not None


class Sieve:
    """SIEVE (Zhang et al., NSDI 2024): a hand walks from the oldest to the newest and takes the first unvisited."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        # The queue cut where the hand stands: what it has yet to reach, oldest first, and what it has passed by.
        self._ahead: OrderedDict[str, bool] = OrderedDict()
        self._passed: OrderedDict[str, bool] = OrderedDict()

    def request(self, key: str) -> bool:
        """See `Peer`."""
        for part in (self._ahead, self._passed):
            if key in part:
                part[key] = True
                return True
        if len(self._ahead) + len(self._passed) == self._slots:
            self._evict()
        # The newest is what the hand reaches last.
        self._ahead[key] = False
        return False

    def _evict(self) -> None:
        while True:
            if not self._ahead:
                self._ahead, self._passed = self._passed, self._ahead
            key, visited = self._ahead.popitem(last=False)
            if not visited:
                return
            self._passed[key] = False


class WTinyLfu:
    """W-TinyLFU (Einziger et al., 2017): a window of 1 %, a segmented LRU, admission by use counts that age.

    The counts are exact where the paper has a sketch, halved every ten times as many requests as there are slots.
    """

    def __init__(self, slots: int) -> None:
        self._window_slots = max(1, slots // 100)
        self._main_slots = slots - self._window_slots
        self._protected_slots = self._main_slots * 8 // 10
        self._window, self._probation, self._protected = (OrderedDict[str, None]() for _ in range(3))
        self._uses: Counter[str] = Counter()
        self._sample, self._seen = 10 * slots, 0

    def request(self, key: str) -> bool:
        """See `Peer`."""
        self._count(key)
        if key in self._window:
            self._window.move_to_end(key)
        elif key in self._protected:
            self._protected.move_to_end(key)
        elif key in self._probation:
            del self._probation[key]
            self._protected[key] = None
            if len(self._protected) > self._protected_slots:
                self._probation[self._protected.popitem(last=False)[0]] = None
        else:
            self._admit(key)
            return False
        return True

    def _count(self, key: str) -> None:
        self._uses[key] += 1
        self._seen += 1
        if self._seen >= self._sample:
            self._seen //= 2
            self._uses = Counter({name: uses // 2 for name, uses in self._uses.items() if uses > 1})

    def _admit(self, key: str) -> None:
        self._window[key] = None
        if len(self._window) <= self._window_slots:
            return
        candidate, _ = self._window.popitem(last=False)
        if len(self._probation) + len(self._protected) >= self._main_slots:
            victim = next(iter(self._probation or self._protected))
            if self._uses[candidate] <= self._uses[victim]:
                return
            del (self._probation if victim in self._probation else self._protected)[victim]
        self._probation[candidate] = None


PEERS: dict[str, Callable[[int], Peer]] = {"LRU": Lru, "LFU": Lfu, "W-TinyLFU": WTinyLfu, "SIEVE": Sieve}


def hit_ratio(cache: Peer, trace: Trace) -> float:
    """Share of the requests after the warm-up that were hits."""
    hits = [cache.request(key) for key in trace]
    return sum(hits[WARM_UP:]) / (len(trace) - WARM_UP)


def traces() -> dict[str, Trace]:
    """Fixed traces: Zipf in three skews, with scans, and with a popularity that shifts."""
    made = {f"zipf {skew}": _zipf(skew) for skew in (0.8, 1.0, 1.2)}
    once = iter(range(REQUESTS))
    is_scan = np.random.default_rng(_SEED + 1).random(REQUESTS) < 1 / 3
    made["zipf 1.0 with scans"] = [
        f"once-{next(once)}" if scan else key for key, scan in zip(_zipf(1.0), is_scan, strict=True)
    ]
    shift = REQUESTS // 6
    made["zipf 1.0 shifting"] = [f"{place // shift}-{key}" for place, key in enumerate(_zipf(1.0))]
    return made


def loop(slots: int) -> Trace:
    """A tenth more keys than slots, over and over: the worst case of LRU."""
    return [str(place % (slots * 11 // 10)) for place in range(REQUESTS)]


def _zipf(skew: float) -> Trace:
    weights = np.arange(1, KEYS + 1) ** -skew
    ranks = np.random.default_rng(_SEED).choice(KEYS, REQUESTS, p=weights / weights.sum())
    return [str(rank) for rank in ranks]
