"""The way to a plan in a few stops: plans that save less and stay closer to the original."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.planning.search import Plan, saved_us


def stops(plans: Sequence[Plan], count: int) -> list[Plan]:
    """At most `count` of the plans, evenly spaced in predicted saved time.

    The last one is among them, the first one (which changes nothing) is not. Fewer where there are
    fewer plans.
    """
    last = len(plans) - 1
    count = min(count, last)
    saved = [saved_us(plan) for plan in plans]
    numbers = [0]
    for number in range(1, count):
        aim = saved[-1] * number / count
        open_ones = range(numbers[-1] + 1, last - (count - number) + 1)
        numbers.append(min(open_ones, key=lambda index: abs(saved[index] - aim)))
    return [plans[number] for number in (*numbers[1:], last)] if count > 0 else []
