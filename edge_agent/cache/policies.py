"""Bounded maps that choose what to let go: LRU, LFU with ageing, nearest expiry, S3-FIFO; pure, over weights in bytes.

Each keeps `weight <= capacity` after every call; none knows of time, threads or tiers.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from primespark.core.cache_settings import CachePolicy

Value = TypeVar("Value")

# What S3-FIFO counts up to.
MAX_USES = 3


class EvictingMap(Protocol[Value]):
    """A map of bounded weight.

    Attributes:
        capacity: Most weight.
        weight: Weight of what it holds.
        evictions: Entries let go for others since the beginning.
    """

    capacity: int
    weight: int
    evictions: int

    def get(self, key: str) -> Value | None:
        """The value, and a note that it was of use."""

    def put(self, key: str, value: Value, weight: int, expires_at: float = ...) -> bool:
        """Hold `value`, letting go of others; False, and `key` is gone, where it alone is over the capacity.

        Args:
            key: Its name; a value under this name is replaced.
            value: What to hold.
            weight: In bytes, above 0.
            expires_at: For the policy `ttl`, on any clock; never when absent.
        """

    def pop(self, key: str) -> Value | None:
        """Let go of one; its value."""

    def __contains__(self, key: object) -> bool: ...

    def __len__(self) -> int: ...


class Node(Generic[Value]):
    """An entry: its value and what its policy notes of it."""

    __slots__ = ("mark", "uses", "value", "weight")

    def __init__(self, value: Value, weight: int) -> None:
        self.value = value
        self.weight = weight
        self.uses = 0
        self.mark: float = 0


class _Bounded(ABC, Generic[Value]):
    """What the four share: the entries, their weight, and room made before one is added."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.weight = 0
        self.evictions = 0
        self.nodes: dict[str, Node[Value]] = {}

    def __contains__(self, key: object) -> bool:
        return key in self.nodes

    def __len__(self) -> int:
        return len(self.nodes)

    def put(self, key: str, value: Value, weight: int, expires_at: float = float("inf")) -> bool:
        """See `EvictingMap`."""
        known = self.nodes.pop(key, None)
        if known is not None:
            self.weight -= known.weight
            self._forget(key, known)
        if weight > self.capacity:
            return False
        while self.weight + weight > self.capacity:
            victim = self._choose()
            self.weight -= self.nodes.pop(victim).weight
            self.evictions += 1
        self.nodes[key] = node = Node(value, weight)
        self.weight += weight
        if known is not None:
            node.uses = known.uses
        self._place(key, node, known, expires_at)
        return True

    def pop(self, key: str) -> Value | None:
        """See `EvictingMap`."""
        node = self.nodes.pop(key, None)
        if node is None:
            return None
        self.weight -= node.weight
        self._forget(key, node)
        return node.value

    @abstractmethod
    def _place(self, key: str, node: Node[Value], known: Node[Value] | None, expires_at: float) -> None:
        """Note a new entry, or one that replaces `known`."""

    @abstractmethod
    def _forget(self, key: str, node: Node[Value]) -> None:
        """Drop the notes of an entry."""

    @abstractmethod
    def _choose(self) -> str:
        """The key to let go, its notes dropped; only asked while there are entries."""


class LruMap(_Bounded[Value]):
    """Lets go of what was not used for longest."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._order: OrderedDict[str, None] = OrderedDict()

    def get(self, key: str) -> Value | None:
        """See `EvictingMap`."""
        node = self.nodes.get(key)
        if node is None:
            return None
        self._order.move_to_end(key)
        return node.value

    def _place(self, key: str, node: Node[Value], known: Node[Value] | None, expires_at: float) -> None:
        self._order[key] = None

    def _forget(self, key: str, node: Node[Value]) -> None:
        del self._order[key]

    def _choose(self) -> str:
        return self._order.popitem(last=False)[0]


class LfuMap(_Bounded[Value]):
    """Lets go of the lowest `uses + age at the last use`, the oldest of equals; age is that sum of the last let go.

    LFU with dynamic ageing (Arlitt et al., 1999): without age, what was popular once stays for ever.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._age: float = 0
        self._ranks: dict[float, OrderedDict[str, None]] = {}
        self._heap: list[float] = []

    def get(self, key: str) -> Value | None:
        """See `EvictingMap`."""
        node = self.nodes.get(key)
        if node is None:
            return None
        self._forget(key, node)
        self._rank(key, node)
        return node.value

    def _place(self, key: str, node: Node[Value], known: Node[Value] | None, expires_at: float) -> None:
        self._rank(key, node)

    def _rank(self, key: str, node: Node[Value]) -> None:
        node.uses += 1
        node.mark = node.uses + self._age
        if node.mark not in self._ranks:
            self._ranks[node.mark] = OrderedDict()
            heapq.heappush(self._heap, node.mark)
            # Ranks that are empty again stay in the heap until they are met or are half of it.
            if len(self._heap) > 2 * len(self._ranks) + 64:
                self._heap = sorted(self._ranks)
        self._ranks[node.mark][key] = None

    def _forget(self, key: str, node: Node[Value]) -> None:
        del self._ranks[node.mark][key]
        if not self._ranks[node.mark]:
            del self._ranks[node.mark]

    def _choose(self) -> str:
        while self._heap[0] not in self._ranks:
            heapq.heappop(self._heap)
        self._age = self._heap[0]
        victim, _ = self._ranks[self._age].popitem(last=False)
        if not self._ranks[self._age]:
            del self._ranks[self._age]
        return victim


class TtlMap(_Bounded[Value]):
    """Lets go of what expires next, the oldest of equals."""

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._heap: list[tuple[float, int, str]] = []
        self._placed = 0

    def get(self, key: str) -> Value | None:
        """See `EvictingMap`."""
        node = self.nodes.get(key)
        return None if node is None else node.value

    def _place(self, key: str, node: Node[Value], known: Node[Value] | None, expires_at: float) -> None:
        self._placed += 1
        # `uses` holds the place here: it tells which of the heap's notes about a key is the valid one.
        node.uses, node.mark = self._placed, expires_at
        heapq.heappush(self._heap, (expires_at, self._placed, key))
        if len(self._heap) > 2 * len(self.nodes) + 64:
            self._heap = [(held.mark, held.uses, name) for name, held in self.nodes.items()]
            heapq.heapify(self._heap)

    def _forget(self, key: str, node: Node[Value]) -> None:
        # Its note stays in the heap until it is met there or half of the heap is such.
        pass

    def _choose(self) -> str:
        while True:
            _, placed, key = heapq.heappop(self._heap)
            node = self.nodes.get(key)
            if node is not None and node.uses == placed:
                return key


class S3FifoMap(_Bounded[Value]):
    """Three queues: newcomers prove themselves in a tenth of the room, and what returns soon after it left is let in.

    S3-FIFO (Yang et al., SOSP 2023). A hit changes a number in place and nothing else, so it needs no lock.
    """

    # One hit is enough. With two, as others have it, the hit ratio was lower on the benchmark's traces, worst after a
    # change of what is popular (0.950 of the best policy, against 0.960).
    _USES_TO_STAY = 1

    def __init__(self, capacity: int) -> None:
        super().__init__(capacity)
        self._small: OrderedDict[str, None] = OrderedDict()
        self._main: OrderedDict[str, None] = OrderedDict()
        self._ghosts: OrderedDict[str, int] = OrderedDict()
        self._small_weight = self._ghost_weight = 0
        self._small_capacity = capacity // 10
        self._ghost_capacity = capacity - self._small_capacity
        self._is_back = False

    def put(self, key: str, value: Value, weight: int, expires_at: float = float("inf")) -> bool:
        """See `EvictingMap`."""
        # Asked before room is made, which may drop the very ghost.
        ghost_weight = self._ghosts.pop(key, None)
        self._is_back = ghost_weight is not None
        self._ghost_weight -= ghost_weight or 0
        return super().put(key, value, weight, expires_at)

    def get(self, key: str) -> Value | None:
        """See `EvictingMap`."""
        node = self.nodes.get(key)
        if node is None:
            return None
        if node.uses < MAX_USES:
            node.uses += 1
        return node.value

    def _place(self, key: str, node: Node[Value], known: Node[Value] | None, expires_at: float) -> None:
        if self._is_back or (known is not None and known.mark):
            self._main[key] = None
            node.mark = 1
        else:
            self._small[key] = None
            self._small_weight += node.weight

    def _forget(self, key: str, node: Node[Value]) -> None:
        if node.mark:
            del self._main[key]
        else:
            del self._small[key]
            self._small_weight -= node.weight

    def _choose(self) -> str:
        while True:
            if self._small and (self._small_weight >= self._small_capacity or not self._main):
                victim = self._leave_small()
            else:
                victim = self._leave_main()
            if victim is not None:
                return victim

    def _leave_small(self) -> str | None:
        key, _ = self._small.popitem(last=False)
        node = self.nodes[key]
        self._small_weight -= node.weight
        if node.uses >= self._USES_TO_STAY:
            node.uses, node.mark = 0, 1
            self._main[key] = None
            return None
        self._ghosts[key] = node.weight
        self._ghost_weight += node.weight
        while self._ghost_weight > self._ghost_capacity:
            self._ghost_weight -= self._ghosts.popitem(last=False)[1]
        return key

    def _leave_main(self) -> str | None:
        key, _ = self._main.popitem(last=False)
        node = self.nodes[key]
        if node.uses == 0:
            return key
        node.uses -= 1
        self._main[key] = None
        return None


_MAPS: dict[CachePolicy, Callable[[int], EvictingMap[object]]] = {
    CachePolicy.LRU: LruMap, CachePolicy.LFU: LfuMap, CachePolicy.TTL: TtlMap, CachePolicy.S3FIFO: S3FifoMap
}  # fmt: skip


def make_map(policy: CachePolicy, capacity: int) -> EvictingMap[Value]:
    """A map of this policy.

    Args:
        policy: Which.
        capacity: Most weight, in bytes.
    """
    return _MAPS[policy](capacity)  # type: ignore[return-value]
