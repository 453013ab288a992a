"""Timing two models against each other so that the answer holds on a shared, noisy machine.

The two run in turn (A B A B ...) in one process; each pair gives a ratio; the median of the ratios
is reported with a distribution-free 95 % confidence interval (order statistics of the median, from
the binomial distribution). Absolute times are medians and only meant as orientation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

from graphopt.runtime import Array, Feeds, run

_SAMPLE_SECONDS = 2e-4


@dataclass(frozen=True)
class Effort:
    """How long to measure: at most `seconds`, within `least`..`most` pairs.

    careful: what was measured with less is not good enough, even if it is known.
    """

    seconds: float = 1.0
    least: int = 11
    most: int = 101
    careful: bool = False

    def pairs(self, once: float) -> int:
        """How many pairs of calls to time that take `once` seconds each (more, if that is short)."""
        return int(np.clip(self.seconds / (2 * max(once, _SAMPLE_SECONDS)), self.least, self.most))


QUICK = Effort(seconds=0.2, least=9, most=31)
"""For one candidate layer among many."""

SURE = Effort(seconds=0.15, least=25, most=151, careful=True)
"""For the candidates that seem best of many: of the quick timings those are often just lucky."""

THOROUGH = Effort(seconds=2.0, least=9, most=201)
"""For the figure that is reported."""


@dataclass(frozen=True)
class Timing:
    """Median times in microseconds and the ratio after / before with its 95 % interval.

    pairs: that were timed; 0 for a prediction.
    """

    before_us: float
    after_us: float
    ratio: float
    ratio_low: float
    ratio_high: float
    pairs: int

    @property
    def measured(self) -> bool:
        """Whether it was timed, now or earlier, and not predicted."""
        return self.pairs > 0

    def of(self, before_us: float) -> Timing:
        """The same ratio of another time."""
        return replace(self, before_us=before_us, after_us=before_us * self.ratio)


def compare(before: Any, after: Any, feeds: Feeds, effort: Effort = THOROUGH) -> Timing:
    """Time two onnxruntime sessions on the same inputs, interleaved."""
    return compare_calls(lambda: run(before, feeds), lambda: run(after, feeds), effort)


def compare_calls(
    before: Callable[[], object], after: Callable[[], object], effort: Effort
) -> Timing:
    """Time two calls, interleaved, after a warm-up of each."""
    return compare_all(before, [after], effort)[0]


def compare_all(
    before: Callable[[], object], others: Sequence[Callable[[], object]], effort: Effort
) -> list[Timing]:
    """Time one call against each of the others, all in turn, after a warm-up of each."""
    calls = (before, *others)
    once = max(1e-7, *(_seconds(call, 2) for call in calls))
    repeats = max(1, round(_SAMPLE_SECONDS / once))
    taken = np.empty((effort.pairs(once * repeats), len(calls)))
    for index, row in enumerate(taken):
        # The order alternates, so that a drift of the clock speed favours none.
        for one in range(len(calls)) if index % 2 == 0 else reversed(range(len(calls))):
            row[one] = _seconds(calls[one], repeats)
    first = taken[:, 0]
    return [_timing(first, second) for second in taken[:, 1:].T]


def _timing(first: Array, second: Array) -> Timing:
    """Of seconds [n] before and after, taken in turn."""
    low, ratio, high = median_interval(second / first)
    return Timing(
        before_us=float(np.median(first)) * 1e6,
        after_us=float(np.median(second)) * 1e6,
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        pairs=len(first),
    )


def median_interval(values: Array, confidence: float = 0.95) -> tuple[float, float, float]:
    """Lower bound, median and upper bound of the median of a sample [n].

    Source: order-statistic interval, David & Nagaraja 2003, "Order Statistics", section 7.1.
    """
    ordered = np.sort(values)
    count = len(ordered)
    below = scipy.special.bdtr(np.arange(count), count, 0.5)  # binomial, cumulative
    lower = int(np.searchsorted(below, (1 - confidence) / 2))
    low, high = max(lower - 1, 0), min(count - lower, count - 1)
    return float(ordered[low]), float(np.median(ordered)), float(ordered[high])


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def random_feeds(shapes: Mapping[str, tuple[tuple[int, ...], Any]], seed: int = 0) -> Feeds:
    """Normally distributed inputs (name -> (shape, dtype)), for timing only."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(shape).astype(dtype)
        if np.dtype(dtype).kind == "f"
        else np.zeros(shape, dtype)
        for name, (shape, dtype) in shapes.items()
    }
