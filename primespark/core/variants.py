"""Which of a model version's files this machine runs; pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from primespark.core.manifests import Manifest, Variant

Version = tuple[int, ...]
_LONGEST = 4


@dataclass(frozen=True, slots=True)
class Runtime:
    """An engine that is here.

    Attributes:
        format: Of the files it runs.
        architectures: Of the chips whose files run on this one, the fastest first; None: it asks no chip.
        version: Of its library; None where it is not known, and then no range is checked.
    """

    format: Literal["onnx", "hef"]
    architectures: tuple[str, ...] | None = None
    version: str | None = None


def usable_variants(
    manifest: Manifest, offered: Collection[str], runtimes: Sequence[Runtime]
) -> tuple[tuple[Runtime, Variant], ...]:
    """Files of a version that run here, the one to prefer first.

    Args:
        manifest: Of the version.
        offered: SHA-256 of the files that can be had.
        runtimes: Engines that are here, the one to prefer first.

    Returns:
        By the order of `runtimes`, within one by its architectures, then as in the manifest; each file once.
    """
    found: dict[str, tuple[Runtime, Variant]] = {}
    for runtime in runtimes:
        fitting = [variant for variant in manifest.variants if variant.sha256 in offered and _fits(variant, runtime)]
        for variant in sorted(fitting, key=lambda variant: _rank(variant, runtime)):
            found.setdefault(variant.sha256, (runtime, variant))
    return tuple(found.values())


def parse_version(text: str) -> Version | None:
    """The numbers a version begins with, as of `4.20.0` or `4.23.0+deb`; None where it does not begin with one."""
    numbers: list[int] = []
    for part in text.split(".")[:_LONGEST]:
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits.isascii() or not digits or len(digits) > 6:
            break
        numbers.append(int(digits))
        if digits != part:
            break
    return tuple(numbers) or None


def is_within(version: str | None, first: str | None, last: str | None) -> bool:
    """Whether a version lies in a range; a bound with fewer numbers stands for all that begin with it."""
    numbers = parse_version(version) if version is not None else None
    if numbers is None:
        return True
    low, high = (parse_version(bound) if bound is not None else None for bound in (first, last))
    # Missing numbers of the version are zeros: 4.20 is 4.20.0.
    padded = numbers + (0,) * (_LONGEST - len(numbers))
    return (low is None or padded >= low) and (high is None or padded[: len(high)] <= high)


def _fits(variant: Variant, runtime: Runtime) -> bool:
    return (
        variant.format == runtime.format
        and (runtime.architectures is None or variant.architecture in runtime.architectures)
        and is_within(runtime.version, variant.runtime_min, variant.runtime_max)
    )


def _rank(variant: Variant, runtime: Runtime) -> int:
    return 0 if runtime.architectures is None else runtime.architectures.index(variant.architecture)
