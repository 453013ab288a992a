"""Choosing one candidate per layer: the fastest network inside the budget.

Saved time is to be large, the sum of squared output errors small: per layer only the lower convex
hull matters, and taking hull steps in order of saved time per error gives a sequence of ever more
aggressive plans (the solutions of the Lagrangian, for all multipliers at once). The real budget is
then met by measuring plans of that sequence, found by bisection, and by trying the next few steps
one by one.
Source: Shoham & Gersho 1988, "Efficient bit allocation for an arbitrary set of quantizers".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from graphopt.planning.budget import Limit
from graphopt.planning.choices import Choice, Options

Plan = tuple[Choice, ...]

_EXTRA_TRIES = 8


@dataclass(frozen=True, eq=False)
class Step:
    """Going from one choice of a layer to the next more aggressive one. gain: us per squared error."""

    choice: Choice
    gain: float


@dataclass(frozen=True)
class Found:
    """The steps that were taken and what ended the search (None: nothing more to gain)."""

    steps: tuple[Step, ...]
    bound_by: Limit | None

    @property
    def plan(self) -> Plan:
        """One choice per layer."""
        return plan_of(self.steps)


def sequence(options: Sequence[Options]) -> list[Step]:
    """All hull steps of all layers, most time saved per squared error first."""
    steps = [step for option in options for step in _hull(option)]
    # Within a layer the hull is concave, so a stable sort by gain keeps each layer's own order.
    return sorted(steps, key=lambda step: (-step.gain, step.choice.layer))


def plan_of(steps: Sequence[Step]) -> Plan:
    """The plan after these steps: the last choice of every layer, in the layers' first order."""
    last: dict[str, Choice] = {}
    for step in steps:
        last[step.choice.layer] = step.choice
    return tuple(last.values())


def prefix(steps: Sequence[Step], fits: Callable[[Plan], bool]) -> int:
    """How many steps can be taken so that the plan still fits, by bisection."""
    return _last(len(steps), lambda count: fits(plan_of(steps[:count])))


def within(
    steps: Sequence[Step],
    fits: Callable[[Plan], bool],
    limit: Limit,
    *,
    known: int | None = None,
    tries: int = _EXTRA_TRIES,
) -> Found:
    """The longest prefix of the steps whose plan fits, then single steps beyond it that still do.

    known: the length of the prefix, if it has been found already.
    """
    taken = list(steps[: prefix(steps, fits) if known is None else known])
    if len(taken) == len(steps):
        return Found(tuple(taken), None)
    for step in steps[len(taken) + 1 :]:
        if tries == 0:
            break
        tries -= 1
        if fits(plan_of([*taken, step])):
            taken.append(step)
    return Found(tuple(taken), limit)


def reaching(steps: Sequence[Step], fast: Callable[[Plan], bool]) -> tuple[Step, ...] | None:
    """The shortest prefix of the steps whose plan is fast enough; None if even all are not."""
    if not fast(plan_of(steps)):
        return None
    if fast(()):
        return ()
    slow = _last(len(steps) - 1, lambda k: not fast(plan_of(steps[:k])))
    return tuple(steps[: slow + 1])


def _last(count: int, holds: Callable[[int], bool]) -> int:
    """The largest k in 0..count for which `holds(k)`, assuming it holds up to some k; 0 for free."""
    if count <= 0 or holds(count):
        return max(count, 0)
    return bisect_left(range(1, count), True, key=lambda k: not holds(k))


def _hull(option: Options) -> list[Step]:
    """The concave hull of saved time over squared error, from (0, 0) on, as steps."""
    points = sorted(option.choices, key=lambda c: (c.error, -c.saved_us))
    hull: list[tuple[float, float, Choice | None]] = [(0.0, 0.0, None)]
    for choice in points:
        point = (choice.error**2, choice.saved_us, choice)
        if point[1] <= hull[-1][1]:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], point):
            hull.pop()
        hull.append(point)
    return [
        Step(after[2], _slope(before, after))
        for before, after in pairwise(hull)
        if after[2] is not None
    ]


def _slope(
    before: tuple[float, float, Choice | None], after: tuple[float, float, Choice | None]
) -> float:
    return (after[1] - before[1]) / max(after[0] - before[0], 1e-18)
