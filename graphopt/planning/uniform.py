"""The usual way, to compare with: every layer keeps the same share of its multiplications."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.planning.choices import Choice, Options
from graphopt.planning.search import Plan

_SHARES = np.linspace(0.95, 0.05, 19)
_WIDTH = 0.1


def uniform(options: Sequence[Options]) -> list[Plan]:
    """Plans that take all layers down together, from one share of their MACs to the next.

    At every share a layer takes the choice of least error among those that keep at most that share
    and not much less of it; a layer that has none keeps what it had. First the empty plan.
    """
    plans: list[Plan] = [()]
    chosen: dict[str, Choice] = {}
    for share in _SHARES:
        for option in options:
            near = [c for c in option.choices if -_WIDTH <= c.candidate.macs_ratio - share <= 0]
            best = min(near, key=lambda choice: choice.error, default=None)
            if best is not None and best is not chosen.get(option.layer):
                chosen[option.layer] = best
                plans.append(tuple(chosen.values()))
    return plans
