"""Many records at once: running maxima of groups, and the aggregates of segments of sorted columns."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from primespark.windows.aggregates import Aggregate
from primespark.windows.columns import Floats, Integers
from primespark.windows.quantiles import BASE, MOST_EXACT, SHIFT, Quantiles, log_bin

# Two numbers are joined to one that is sorted; above this they could run over.
_LARGEST = 2**62
# Nearer to the bound of a bin than this, two logarithms may differ about it.
_DOUBTFUL = 1e-9


def starts_of(sorted_keys: Integers) -> Integers:
    """Where each run of equal keys begins."""
    return np.concatenate(([0], np.flatnonzero(np.diff(sorted_keys)) + 1))


def joined(major: Integers, minor: Integers) -> Integers:
    """One number for each pair, in the order of pairs; `fits` says whether 64 bits are enough."""
    least = int(minor.min())
    keys: Integers = major * (int(minor.max()) - least + 1) + (minor - least)
    return keys


def fits(majors: int, minor: Integers) -> bool:
    """Whether pairs of a number below `majors` and one of `minor`, or a quotient of these, can be joined."""
    return majors * (int(minor.max()) - int(minor.min()) + 2) < _LARGEST


def running_maximum(sorted_groups: Integers, values: Integers) -> Integers:
    """The largest value of a row's group up to the row.

    Args:
        sorted_groups: Not negative; rows of a group lie together.
        values: Of the same length.
    """
    least = int(values.min())
    span = int(values.max()) - least + 1
    # A later group's keys are above all of an earlier one.
    running: Integers = np.maximum.accumulate(joined(sorted_groups, values)) - sorted_groups * span + least
    return running


def aggregates(
    segments: Integers, events: Integers, values: Floats, offsets: Integers, indexes: Integers, *, with_quantiles: bool
) -> list[Aggregate]:
    """The aggregate of each segment, in order.

    Args:
        segments: Which one a row is in, sorted; rows of one are in the order in which they came.
        events: Event times.
        values: Finite.
        offsets: Of the rows' messages.
        indexes: Of the rows in their messages.
        with_quantiles: Whether percentiles are asked for.
    """
    starts = starts_of(segments)
    if np.any((np.diff(events) < 0) & (np.diff(segments) == 0)):
        order = np.lexsort((events, segments))
        events, values, offsets, indexes = events[order], values[order], offsets[order], indexes[order]
    ends = np.append(starts[1:], len(values))
    counts = ends - starts
    with np.errstate(over="ignore", invalid="ignore"):
        # With the longer mantissa where there is one; what is left over goes to the compensation.
        long_totals = np.add.reduceat(values.astype(np.longdouble), starts)
        totals = long_totals.astype(np.float64)
        rests = np.where(np.isfinite(totals), long_totals - totals, 0.0).astype(np.float64)
        means = (long_totals / counts).astype(np.float64)
        apart = values - np.repeat(means, counts)
        # The second term takes away what the rounding of the mean added (Chan, Golub and LeVeque, 1983).
        squares = np.add.reduceat(apart * apart, starts) - np.add.reduceat(apart, starts) ** 2 / counts
    lasts = ends - 1
    columns: list[NDArray[np.float64] | Integers] = [
        counts, totals, rests, means, np.maximum(squares, 0.0),
        np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts),
        values[starts], events[starts], offsets[starts], indexes[starts],
        values[lasts], events[lasts], offsets[lasts], indexes[lasts],
    ]  # fmt: skip
    found = [Aggregate.from_state(list(state)) for state in zip(*(column.tolist() for column in columns), strict=True)]
    if with_quantiles:
        for aggregate, quantiles in zip(found, _quantiles(values, starts.tolist(), ends.tolist()), strict=True):
            aggregate.quantiles = quantiles
    return found


def _quantiles(values: Floats, starts: Sequence[int], ends: Sequence[int]) -> list[Quantiles]:
    found = []
    for start, end in zip(starts, ends, strict=True):
        own = values[start:end]
        if end - start <= MOST_EXACT:
            found.append(Quantiles.from_state([own.tolist()]))
        else:
            bins, counts = np.unique(log_bins(own), return_counts=True)
            found.append(Quantiles.from_state([None, bins.tolist(), counts.tolist()]))
    return found


def log_bins(values: Floats) -> Integers:
    """The bin of each finite value: that which `log_bin` says."""
    is_zero = values == 0
    exact = np.log(np.where(is_zero, 1.0, np.abs(values))) / math.log(BASE)
    sizes = np.where(is_zero, 0.0, SHIFT + np.ceil(exact))
    bins: Integers = np.where(values < 0, -sizes, sizes).astype(np.int64)
    for row in np.flatnonzero(np.abs(exact - np.rint(exact)) < _DOUBTFUL):
        bins[row] = log_bin(float(values[row]))
    return bins
