"""The way to a plan in a few stops: plans that save less and stay closer to the original."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.planning.search import Plan, Step, plan_of


def stops(steps: Sequence[Step], count: int) -> list[Plan]:
    """At most `count` plans along the steps, evenly spaced in predicted saved time.

    The last one takes all steps; none of them takes no step. Fewer where there are fewer steps.
    """
    if not steps:
        return []
    count = min(count, len(steps))
    saved = _saved(steps)
    lengths = [0]
    for number in range(1, count):
        aim = saved[-1] * number / count
        open_ones = range(lengths[-1] + 1, len(steps) - (count - number) + 1)
        lengths.append(min(open_ones, key=lambda length: abs(saved[length] - aim)))
    return [plan_of(steps[:length]) for length in (*lengths[1:], len(steps))]


def _saved(steps: Sequence[Step]) -> list[float]:
    """Predicted time saved after 0, 1, ... steps."""
    by_layer: dict[str, float] = {}
    found = [0.0]
    for step in steps:
        by_layer[step.choice.layer] = step.choice.saved_us
        found.append(sum(by_layer.values()))
    return found
