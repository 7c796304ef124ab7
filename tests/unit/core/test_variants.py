"""Which file of a version is chosen, for every mix of engines and ranges."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from primespark.core.clock import utc_now
from primespark.core.manifests import Manifest, Variant
from primespark.core.variants import Runtime, is_within, parse_version, usable_variants

numbers = st.lists(st.integers(0, 50), min_size=1, max_size=3).map(lambda parts: ".".join(map(str, parts)))


def variant(digit: str, format_: str = "onnx", architecture: str = "any", **limits: Any) -> Variant:
    return Variant(format=format_, architecture=architecture, sha256=digit * 64, size_bytes=1, **limits)  # type: ignore[arg-type]


def manifest(*variants: Variant) -> Manifest:
    return Manifest(
        name="m", version=1, model_type="classification", created=utc_now(), labels=("a",), variants=variants
    )


def chosen(found: Manifest, *runtimes: Runtime, offered: str = "abcdef") -> str:
    return "".join(one.sha256[0] for _, one in usable_variants(found, {digit * 64 for digit in offered}, runtimes))


ONNX = Runtime("onnx", version="1.20.1")
HAILO8 = Runtime("hef", ("hailo8", "hailo8l"), "4.23.0")
HAILO8L = Runtime("hef", ("hailo8l",), "4.20.0")
ALL = manifest(
    variant("a"), variant("b", "hef", "hailo8l"), variant("c", "hef", "hailo8"), variant("d", "hef", "hailo15h")
)


def test_engines_come_in_the_order_of_preference_and_a_chips_own_files_first() -> None:
    assert chosen(ALL, HAILO8, ONNX) == "cba"
    assert chosen(ALL, ONNX, HAILO8) == "acb"
    assert chosen(ALL, HAILO8L, ONNX) == "ba"
    assert chosen(ALL, ONNX) == "a"
    assert chosen(ALL, HAILO8, ONNX, offered="bd") == "b"
    assert chosen(ALL) == ""


def test_a_file_outside_its_range_is_left_out() -> None:
    found = manifest(
        variant("a", "hef", "hailo8", runtime_min="4.21"),
        variant("b", "hef", "hailo8", runtime_max="4.20"),
        variant("c", "hef", "hailo8", runtime_min="4.20", runtime_max="4.23"),
    )
    assert chosen(found, HAILO8) == "ac"
    assert chosen(found, Runtime("hef", ("hailo8",), "4.20.1")) == "bc"
    assert chosen(found, Runtime("hef", ("hailo8",))) == "abc"


@given(numbers, numbers, numbers)
def test_a_range_is_as_the_numbers_say(version: str, first: str, last: str) -> None:
    # 4.23 as the last one stands for all of 4.23: compare no more numbers than the bound has.
    width = last.count(".") + 1
    padded = f"{version}.0.0.0".split(".")[:width]
    expected = Version(first) <= Version(version) and Version(".".join(padded)) <= Version(last)
    assert is_within(version, first, last) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4.23.0", (4, 23, 0)), ("4.23.0+deb", (4, 23, 0)), ("4.20rc1", (4, 20)), ("", None), ("dev", None),
        ("1.2.3.4.5", (1, 2, 3, 4)), ("4.٣", (4,)), ("9" * 400, None),
    ],
)  # fmt: skip
def test_versions_as_people_write_them(text: str, expected: tuple[int, ...] | None) -> None:
    assert parse_version(text) == expected


@given(st.text(max_size=20))
def test_no_text_breaks_the_reader(text: str) -> None:
    found = parse_version(text)
    assert found is None or all(isinstance(number, int) for number in found)
