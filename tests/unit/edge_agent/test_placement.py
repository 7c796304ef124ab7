"""The processor helps a busy accelerator, and does not change its mind with each request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.placement import Overflow, ProcessorLoad

ENOUGH = 4


class World:
    """A queue and a processor that are as told."""

    def __init__(self) -> None:
        self.depth, self.load = 0, 0.0
        self.overflow = Overflow(lambda: self.depth, ENOUGH, lambda: self.load)

    def helps(self, depth: int, load: float) -> bool:
        self.depth, self.load = depth, load
        return self.overflow.helps()


def test_it_begins_with_a_long_queue_and_an_idle_processor() -> None:
    for depth, load, expected in [(7, 0.1, False), (8, 0.5, False), (8, 0.49, True)]:
        assert World().helps(depth, load) is expected


def test_it_goes_on_until_the_queue_is_short_or_the_processor_busy() -> None:
    world = World()
    assert world.helps(8, 0.1)
    assert world.helps(5, 0.95)
    assert not world.helps(4, 0.1)
    assert not world.helps(7, 0.1)
    assert world.helps(8, 0.1)
    assert not world.helps(100, 0.96)
    assert not world.helps(100, 0.6)


@given(st.lists(st.tuples(st.integers(0, 12), st.floats(0, 1)), max_size=60))
def test_it_changes_only_at_its_bounds(steps: list[tuple[int, float]]) -> None:
    world, helped = World(), False
    for depth, load in steps:
        helps = world.helps(depth, load)
        if helps and not helped:
            assert depth >= 2 * ENOUGH
            assert load < 0.5
        if helped and not helps:
            assert depth <= ENOUGH or load > 0.95
        helped = helps


def test_the_processors_load_is_a_share() -> None:
    assert 0.0 <= ProcessorLoad()() <= 1.0
