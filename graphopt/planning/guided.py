"""Meeting a budget with few measurements: a cheap curve says where to look, a costly fit decides.

How much of the budget a plan uses is first measured for plans fitted layer by layer, all along the
sequence. A plan fitted as a whole is better by a factor that changes slowly along the sequence: so
every costly fit corrects the curve, and the next one is made where the corrected curve meets the
budget (a secant method on the factor), inside the bracket that the answers so far leave open.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from graphopt.factorize.weighting import Array
from graphopt.planning.search import Plan

_POINTS = 12
_LARGE = 1e6
_FINE = 32
"""The answer is looked for to one part in this of the sequence."""

_NEARLY = 0.85
"""A plan that uses this share of the budget is near enough when the next one is a step away."""


@dataclass(frozen=True)
class Curve:
    """Share of the budget used (1: all of it) by the plan of a number; rises along the sequence."""

    counts: Array
    shares: Array

    def at(self, count: int) -> float:
        """The share used by the plan of a number."""
        return float(np.interp(count, self.counts, self.shares))

    def reach(self, share: float) -> int:
        """About which plan uses up a share."""
        inside = np.flatnonzero(self.shares <= share)
        last = int(inside[-1]) if len(inside) else 0
        if last == len(self.counts) - 1:
            return int(self.counts[-1])
        rise = self.shares[last + 1] - self.shares[last]
        part = (share - self.shares[last]) / rise if rise > 0 else 0.0
        return int(self.counts[last] + part * (self.counts[last + 1] - self.counts[last]))


def curve(plans: Sequence[Plan], used: Callable[[Plan], float], points: int = _POINTS) -> Curve:
    """Measure the share used by evenly spaced plans and smooth it by isotonic regression.

    A drop in accuracy on a few hundred samples goes up and down by chance, its trend does not.
    """
    counts = np.unique(np.linspace(0, len(plans) - 1, points + 1).round().astype(int))
    shares = [min(_LARGE, used(plans[count])) for count in counts[1:]]
    return Curve(counts, scipy.optimize.isotonic_regression([0.0, *shares]).x)


def settle(
    plans: Sequence[Plan],
    expected: Curve,
    fits: Callable[[Plan], bool],
    used: Callable[[Plan], float],
    tries: int = 7,
) -> int:
    """The number of the last plan that fits, by at most `tries` measurements; the first one does.

    Plans may be turned down by chance: then earlier ones are tried, by growing strides.
    """
    last = len(plans) - 1
    low, high, stride = 0, last + 1, max(1, last // 24)
    fine = last // _FINE
    shares = {0: 0.0}
    count = expected.reach(1.0)
    for _ in range(tries):
        count = min(max(count, low + 1), high - 1)
        if count <= low:
            break
        plan = plans[count]
        holds, shares[count] = fits(plan), used(plan)
        low, high = (count, high) if holds else (low, count)
        aim = _aim(expected, shares, low, high)
        if high - low <= 1 + fine:
            break
        if holds and aim - low <= fine:
            if shares[count] >= _NEARLY:
                break
            aim = (low + high) // 2  # the curve is of another shape: halve the bracket
        elif not holds:
            aim, stride = min(aim, high - stride), 2 * stride
        count = aim
    return low


def _aim(expected: Curve, shares: Mapping[int, float], low: int, high: int) -> int:
    """Where the budget should be used up: the expected curve, corrected by what was measured."""
    ends = [(expected.at(count), shares[count]) for count in (low, high) if count in shares]
    if len(ends) == 2 and ends[0][1] < 1 < ends[1][1] and ends[0][0] < ends[1][0]:
        (start, least), (end, most) = ends
        return expected.reach(start + (1 - least) / (most - least) * (end - start))
    if low > 0 and shares.get(high, 2.0) <= 1:
        return (low + high) // 2  # the end was turned down by chance, not by the curve
    seen, share = ends[-1]
    return expected.reach(seen / share) if share > 0 else int(expected.counts[-1])
