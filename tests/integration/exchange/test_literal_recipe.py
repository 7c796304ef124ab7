"""The laws that `test_machine` holds the real exchange to are broken by the recipe of the specification."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.integration.exchange.laws import LawBrokenError, Written, check_convergence, check_uncontended
from tests.integration.exchange.literal_recipe import Replica, synchronise

CLOUD = 2
places = st.integers(0, 2)
keys = st.sampled_from("xy")
values = st.dictionaries(st.sampled_from("ab"), st.integers(1, 3), min_size=1)


class LiteralMachine(RuleBasedStateMachine):
    """Histories as `ExchangeMachine` makes them, of what the recipe can do."""

    def __init__(self) -> None:
        super().__init__()
        self.replicas = [Replica(), Replica(), Replica()]
        self.writes: dict[str, list[Written]] = {"x": [], "y": []}
        self.numbers = itertools.count()
        self.now = 0

    @initialize(ahead=st.sampled_from([(0, 0, 0), (5, -5, 0)]))
    def begin(self, ahead: tuple[int, int, int]) -> None:
        self.ahead = ahead

    @rule(at=places, key=keys, value=values)
    def write(self, at: int, key: str, value: dict[str, Any]) -> None:
        self._write(at, key, value)

    @rule(at=st.integers(0, 1), is_cut_off=st.booleans())
    def synchronise(self, at: int, is_cut_off: bool) -> None:
        synchronise(self.replicas[at], self.replicas[CLOUD], is_cut_off=is_cut_off)

    def teardown(self) -> None:
        for _ in range(4):
            for edge in self.replicas[:CLOUD]:
                synchronise(edge, self.replicas[CLOUD], is_cut_off=False)
        for key, writes in self.writes.items():
            values = [replica.items[key].value if key in replica.items else {} for replica in self.replicas]
            check_convergence(values)
            check_uncontended(writes, values[CLOUD])

    def _write(self, at: int, key: str, value: dict[str, Any]) -> None:
        self.now += 1
        number, before = next(self.numbers), self.replicas[at].items.get(key)
        seen = self.replicas[at].write(key, value, self.now + self.ahead[at], number)
        self.writes[key].append(Written(number, str(at), seen, before.value if before else {}, value))


class LiteralMachineThatDeletes(LiteralMachine):
    """The same, with deletions."""

    @rule(at=places, key=keys)
    def delete(self, at: int, key: str) -> None:
        if key in self.replicas[at].items:
            self._write(at, key, {})


@pytest.mark.parametrize(("machine", "law"), [(LiteralMachineThatDeletes, "I7"), (LiteralMachine, "I8")])
def test_the_recipe_as_it_is_written_breaks_the_law(machine: type[LiteralMachine], law: str) -> None:
    with pytest.raises(LawBrokenError, match=f"^{law}"):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=2000, stateful_step_count=12, derandomize=True, database=None, deadline=None,
                phases=[Phase.generate], report_multiple_bugs=False, suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
