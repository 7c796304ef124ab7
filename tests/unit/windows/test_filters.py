"""Filters compare like with like, and what is missing matches nothing."""

from __future__ import annotations

from typing import Any

import pytest

from primespark.errors import InvalidInputError
from primespark.windows.filters import condition
from tests.unit.windows.histories import Feed, make_engine, make_rule
from tests.unit.windows.oracle import Step

ROW = {"n": 5, "x": 2.5, "t": "hall", "yes": True, "none": None, "list": [1], "nan": float("nan")}


@pytest.mark.parametrize(
    ("given", "matches"),
    [
        (("n", "==", 5), True),
        (("n", "==", 5.0), True),
        (("n", "==", "5"), False),
        (("yes", "==", 1), False),
        (("yes", "==", True), True),
        (("n", "!=", "5"), True),
        (("none", "==", None), True),
        (("none", "!=", 1), True),
        (("missing", "==", None), False),
        (("missing", "!=", 1), False),
        (("list", "==", 1), False),
        (("nan", "==", 1), False),
        (("n", "<", 6), True),
        (("n", "<", 5), False),
        (("n", "<=", 5), True),
        (("x", ">", 2), True),
        (("x", ">=", 2.5), True),
        (("t", "<", "hamster"), True),
        (("t", "<", 5), False),
        (("yes", ">", 0), False),
        (("missing", "<", 5), False),
        (("t", "in", ["lab", "hall"]), True),
        (("n", "in", [1, 2]), False),
        (("missing", "in", [None]), False),
        (("none", "in", [None]), True),
        (("t", "in", []), False),
        (("t", "exists", True), True),
        (("none", "exists", True), True),
        (("missing", "exists", True), False),
        (("missing", "exists", False), True),
        (("t", "exists", False), False),
    ],
)
def test_a_condition_compares_like_with_like(given: tuple[str, str, Any], matches: bool) -> None:
    assert condition(*given)(ROW) is matches


@pytest.mark.parametrize(
    "given",
    [
        ("n", "~", 1), ("n", "=", 1), ("n", "<", True), ("n", "<", None), ("n", "==", [1]), ("n", "==", float("nan")),
        ("n", "in", "hall"), ("n", "in", [[1]]), ("n", "in", [1] * 1001), ("n", "exists", 1),
    ],
)  # fmt: skip
def test_what_compares_with_nothing_is_refused(given: tuple[str, str, Any]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        condition(*given)
    assert refused.value.code == "bad_filter"


def test_what_does_not_match_all_is_counted_and_moves_no_watermark() -> None:
    engine = make_engine(
        make_rule({"watermark_scope": "key"}, filters=[["cpu_percent", ">", 0], ["ts", "exists", True]])
    )
    feed = Feed(engine)
    feed.step(Step(0, 0, "a", 0, 1.0))
    assert feed.step(Step(0, 0, "a", 50_000, -1.0)).results == []
    (result,) = feed.step(Step(0, 0, "a", 60_000, 2.0)).results
    assert (result.value, engine.counters["r"].filtered) == (1.0, 1)
