"""Choosing one candidate per layer: the fastest network inside the budget.

Saved time is to be large, the sum of squared output errors small. Per layer the lower convex hull of
the two, its steps taken in order of saved time per error, gives ever more aggressive plans: the
solutions of the Lagrangian, for all multipliers at once. Where two of them are far apart (a network
of few layers), the knapsack problem in between is solved by dynamic programming. The real budget is
then met by measuring plans of that sequence.
Source: Shoham & Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers";
Kellerer et al. 2004, "Knapsack problems", chapter 11 (multiple-choice).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from graphopt.planning.budget import Limit
from graphopt.planning.choices import Choice, Options
from graphopt.planning.hull import hull
from graphopt.runtime import Array

Plan = tuple[Choice, ...]
"""One choice for every layer that is changed, by layer name."""

_EXTRA_TRIES = 8

_APART = 1.2
"""Neighbours in the sequence whose squared errors differ by more get plans in between."""

_WIDEST = 100.0
"""How far below a plan's squared error those in between begin, at the least."""

_GRID = 1024
"""Parts that squared error is counted in by the dynamic program."""


@dataclass(frozen=True)
class Found:
    """The plans up to the one found, and what ended the search (None: nothing more to gain)."""

    plans: tuple[Plan, ...]
    bound_by: Limit | None

    @property
    def plan(self) -> Plan:
        """One choice per layer."""
        return self.plans[-1]


def sequence(options: Sequence[Options]) -> list[Plan]:
    """Plans that save ever more and differ ever more from the original; first the empty one."""
    plans: list[Plan] = [()]
    for before, after in pairwise(_lagrangian(options)):
        for allowance in _between(squared_error(before), squared_error(after)):
            plan = _knapsack(options, allowance)
            if saved_us(plans[-1]) < saved_us(plan) < saved_us(after):
                plans.append(plan)
        plans.append(after)
    return plans


def saved_us(plan: Plan) -> float:
    """Microseconds a plan is expected to save."""
    return sum(choice.saved_us for choice in plan)


def squared_error(plan: Plan) -> float:
    """Squared relative output error a plan is expected to have, errors taken as independent."""
    return sum(choice.error**2 for choice in plan)


def prefix(plans: Sequence[Plan], fits: Callable[[Plan], bool]) -> int:
    """The last of the plans that fits, by bisection; the first one is taken to."""
    return _last(len(plans) - 1, lambda index: fits(plans[index]))


def within(
    plans: Sequence[Plan],
    fits: Callable[[Plan], bool],
    limit: Limit,
    *,
    known: int | None = None,
    tries: int = _EXTRA_TRIES,
) -> Found:
    """The last of the plans that fits by bisection, then single choices of later ones that still do.

    known: the index of the plan, if it has been found already.
    """
    last = prefix(plans, fits) if known is None else known
    if last == len(plans) - 1:
        return Found(tuple(plans), None)
    found = list(plans[: last + 1])
    refused = plans[last + 1]
    for choice in dict.fromkeys(choice for plan in plans[last + 1 :] for choice in plan):
        if tries == 0:
            break
        kept = [other for other in found[-1] if other.layer != choice.layer]
        plan = _plan([*kept, choice])
        if plan != refused and saved_us(plan) > saved_us(found[-1]):
            tries -= 1
            if fits(plan):
                found.append(plan)
    return Found(tuple(found), limit)


def reaching(plans: Sequence[Plan], fast: Callable[[Plan], bool]) -> tuple[Plan, ...] | None:
    """The plans up to the first one that is fast enough; None if even the last is not."""
    if not fast(plans[-1]):
        return None
    if fast(plans[0]):
        return tuple(plans[:1])
    slow = _last(len(plans) - 2, lambda index: not fast(plans[index]))
    return tuple(plans[: slow + 2])


def _last(count: int, holds: Callable[[int], bool]) -> int:
    """The largest k in 0..count for which `holds(k)`, assuming it holds up to some k; 0 for free."""
    if count <= 0 or holds(count):
        return max(count, 0)
    return bisect_left(range(1, count), True, key=lambda k: not holds(k))


def _lagrangian(options: Sequence[Options]) -> list[Plan]:
    """The plans after 0, 1, ... hull steps of all layers, most time saved per squared error first."""
    steps = [
        (gain, option.choices[index])
        for option in options
        for index, gain in hull([(choice.error**2, choice.saved_us) for choice in option.choices])
    ]
    # Within a layer the hull is concave, so a stable sort by gain keeps each layer's own order.
    plans: list[Plan] = [()]
    chosen: dict[str, Choice] = {}
    for _, choice in sorted(steps, key=lambda step: (-step[0], step[1].layer)):
        chosen[choice.layer] = choice
        plans.append(_plan(chosen.values()))
    return plans


def _plan(choices: Iterable[Choice]) -> Plan:
    return tuple(sorted(choices, key=lambda choice: choice.layer))


def _between(low: float, high: float) -> Iterator[float]:
    """Squared errors strictly between two, each the same factor above the last."""
    low = max(low, high / _WIDEST)
    parts = int(np.log(high / low) / np.log(_APART)) if low > 0 else 0
    yield from np.geomspace(low, high, parts + 1)[1:-1] if parts > 1 else ()


def _knapsack(options: Sequence[Options], allowance: float) -> Plan:
    """The plan that saves the most with a squared error of at most the allowance (on the grid)."""
    best = np.zeros(_GRID + 1)
    picks: list[tuple[Sequence[Choice], Array]] = []
    for option in options:
        affordable = [c for c in option.choices if c.error**2 <= allowance and c.saved_us > 0]
        rows = np.full((len(affordable) + 1, _GRID + 1), -np.inf)
        rows[0] = best
        for row, choice in zip(rows[1:], affordable, strict=True):
            used = int(np.ceil(choice.error**2 / allowance * _GRID))
            row[used:] = best[: _GRID + 1 - used] + choice.saved_us
        picks.append((affordable, rows.argmax(axis=0)))
        best = rows.max(axis=0)
    left, chosen = _GRID, []
    for menu, taken in reversed(picks):
        if taken[left]:
            chosen.append(menu[taken[left] - 1])
            left -= int(np.ceil(chosen[-1].error ** 2 / allowance * _GRID))
    return _plan(chosen)
