"""Meeting a budget with few measurements: a cheap curve says where to look, a costly fit decides.

How much of the budget a plan uses is first measured for plans fitted layer by layer, all along the
sequence. A plan fitted as a whole is better by a factor that changes slowly along the sequence: so
every costly fit corrects the curve, and the next one is made where the corrected curve meets the
budget. A drop that is counted on few samples goes up and down by chance: what leads is the surer
estimate of it, and how much more than that is counted on the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy

from graphopt.factorize.weighting import Array
from graphopt.planning.search import Plan

CURVE_POINTS = 12
"""Plans whose share of the budget is measured before any is fitted as a whole."""

_LARGE = 1e6
_FINE = 32
"""The answer is looked for to one part in this of the sequence."""

_NEARLY = 0.9
"""A plan that uses this share of the budget is near enough."""

_TRIES = 7
_TRIES_OF_FEW = 15
"""Less one for each layer."""

_DOUBT = 0.5
"""Budgets' worth of drops in which counted and expected agree, before any is measured."""

_LITTLE = 0.02
"""A share of the budget that two measurements may well differ by."""


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


def curve(
    plans: Sequence[Plan], used: Callable[[Plan], float], points: int = CURVE_POINTS
) -> Curve:
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
    surely: Callable[[Plan], float],
    most: int | None = None,
) -> int:
    """The number of the last plan that fits, of a few that are measured; the first one does.

    They are fewer for networks of many layers, where a fit takes longer and chance less.

    used: share of the budget that a plan uses. surely: the same by the surest estimate alone; what
    fits uses no more than all of it by either. most: to be measured, where a fit takes longer still.
    """
    last = len(plans) - 1
    usual = max(_TRIES, _TRIES_OF_FEW - len(plans[-1]))
    tries = usual if most is None else min(most, usual)
    low, high = 0, last + 1
    shares: dict[int, tuple[float, float]] = {}
    while len(shares) < tries:
        excess = _excess(shares)
        if low in shares and shares[low][1] * excess >= _NEARLY:
            break
        aim = _aim(expected, {n: sure for n, (_, sure) in shares.items()}, last, 1 / excess)
        count = _untried(aim, range(low + 1, high), shares, last // _FINE)
        if count is None:
            break
        holds = fits(plans[count])
        shares[count] = used(plans[count]), surely(plans[count])
        if holds:
            low = max(low, count)
        elif not shares[count][1] <= 1:
            high = count
    return low


def _excess(shares: Mapping[int, tuple[float, float]]) -> float:
    """How much more of the budget is used than by the surest estimate, on the whole; at least 1."""
    finite = [pair for pair in shares.values() if np.isfinite(pair).all()]
    used, surely = (sum(column) for column in zip(*finite, strict=True)) if finite else (0.0, 0.0)
    return max(1.0, (used + _DOUBT) / (surely + _DOUBT))


def _aim(expected: Curve, shares: Mapping[int, float], last: int, target: float) -> int:
    """Where a share should be used up: on the expected curve, corrected by what was measured."""
    counts = np.arange(last + 1)
    curve = np.interp(counts, expected.counts, expected.shares) + _LITTLE
    tried = sorted(shares)
    if tried:
        ratios = [(min(shares[n], _LARGE) + _LITTLE) / curve[n] for n in tried]
        curve = curve * np.interp(counts, tried, ratios)
    rising = np.maximum.accumulate(curve) - _LITTLE
    return max(0, int(np.searchsorted(rising, target, side="right")) - 1)


def _untried(aim: int, open_counts: range, tried: Iterable[int], apart: int) -> int | None:
    """The count nearest to the aim that is no more than `apart` from one tried; None: none is left."""
    near = set(tried)
    left = [n for n in open_counts if not any(abs(n - other) <= apart for other in near)]
    return min(left, key=lambda n: (abs(n - aim), n), default=None)
