"""What the approximate stage came to. Apart from the stage itself, which not every run imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:  # the planner
    from graphopt.planning.budget import Limit
    from graphopt.planning.choices import Choice
    from graphopt.planning.workshop import Realised
    from graphopt.rewrites.base import Decline

Plan: TypeAlias = "tuple[tuple[Choice, Realised], ...]"
"""Choices with their fitted weights."""


@dataclass(frozen=True)
class Approximation:
    """The plan, what ended the search, what was declined, and estimates when there was no budget.

    slower: the whole plan was measured and is not faster than the exactly rewritten model.
    closer: plans on the way to this one, closest to the original first, where they were asked for.
    whole_us: the model's time that the choices' timings are shares of, where it was measured.
    remarks: what a designer should know of what `--ranks` asked for.
    """

    plan: Plan = ()
    bound_by: Limit | None = None
    declined: tuple[Decline, ...] = ()
    available: tuple[tuple[float, float], ...] = ()
    slower: bool = False
    closer: tuple[Plan, ...] = ()
    whole_us: float | None = None
    remarks: tuple[str, ...] = ()
