"""From a model and a budget to a plan, by asking the guard."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.errors import BudgetError
from graphopt.graph.scope import Scope
from graphopt.planning.budget import Budget, Limit
from graphopt.planning.choices import Options, with_candidates
from graphopt.planning.guard import Guard, Measured
from graphopt.planning.search import Found, Plan, plan_of, reaching, sequence, within
from graphopt.progress import Progress


def choose(
    scope: Scope,
    options: Sequence[Options],
    budget: Budget,
    guard: Guard,
    progress: Progress,
) -> Found:
    """The plan for a budget.

    With a limit on error or drop: the fastest plan inside it. With a speed-up: the least error that
    reaches it. With both: whichever binds first.

    Raises:
        BudgetError: Only a speed-up was asked for, and nothing on offer reaches it.
    """
    steps = sequence(options)
    progress.stage("Searching the budget", None)
    measured: dict[Plan, Measured] = {}
    speeds: dict[Plan, float] = {}

    def build(plan: Plan) -> ir.Model:
        return with_candidates(scope, [(c.layer, c.candidate) for c in plan])

    def fits(plan: Plan) -> bool:
        if plan not in measured:
            measured[plan] = guard.held_out(build(plan))
            progress.step(f"{len(plan)} layers, error {measured[plan].error:.3g}")
        return not exceeded(budget, measured[plan])

    def fast(plan: Plan) -> bool:
        if plan not in speeds:
            speeds[plan] = guard.speedup(build(plan))
            progress.step(f"{len(plan)} layers, {speeds[plan]:.2f}x")
        return budget.speedup is not None and speeds[plan] >= budget.speedup

    if budget.max_error is None and budget.max_drop is None:
        reached = reaching(steps, fast)
        if reached is None:
            most = speeds[plan_of(steps)]
            raise BudgetError(
                f"a speed-up of {budget.speedup:g}x cannot be reached: {most:.2f}x is the most"
            )
        return Found(reached, "speedup")
    found = within(steps, fits, "max_error" if budget.max_drop is None else "max_drop")
    if found.bound_by is not None and budget.max_error is not None and budget.max_drop is not None:
        found = Found(found.steps, _binding(budget, measured))
    if budget.speedup is None:
        return found
    reached = reaching(found.steps, fast)
    return found if reached is None else Found(reached, "speedup")


def exceeded(budget: Budget, measured: Measured) -> Limit | None:
    """The limit that a measurement breaks, or None."""
    if budget.max_error is not None and not measured.error <= budget.max_error:
        return "max_error"
    if budget.max_drop is not None and not (measured.drop or 0.0) <= budget.max_drop:
        return "max_drop"
    return None


def _binding(budget: Budget, measured: dict[Plan, Measured]) -> Limit:
    """Which limit the closest rejected plan broke."""
    rejected = [m for m in measured.values() if exceeded(budget, m)]
    closest = min(rejected, key=lambda m: m.error)
    return exceeded(budget, closest) or "max_error"
