"""From a model and a budget to a plan, by asking the guard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.errors import BudgetError
from graphopt.graph.scope import Scope
from graphopt.planning.budget import Budget, Limit
from graphopt.planning.choices import with_candidates
from graphopt.planning.fitting import Fit, symmetric
from graphopt.planning.guard import Guard, Measured
from graphopt.planning.guided import CURVE_POINTS, curve, settle
from graphopt.planning.notebook import Figures, Notebook, noted, plan_key
from graphopt.planning.search import Found, Plan, reaching, within
from graphopt.planning.workshop import Realised
from graphopt.progress import Progress

_REFITTED_TRIES = 1
"""Single choices tried beyond the plan settled on when every try is a fit of the whole plan."""

_FEW_FITS = 3
"""With no more than these none is spent on a single choice."""


@dataclass(frozen=True)
class Chosen:
    """The plan with its fitted weights, and what ended the search (None: nothing more to gain).

    plans: those on the way to it, closest to the original first, and the plan itself.
    """

    plan: Plan
    realised: tuple[Realised, ...]
    bound_by: Limit | None
    plans: tuple[Plan, ...] = ((),)


class _Search:
    """One search: remembers what was fitted and measured."""

    def __init__(
        self,
        scope: Scope,
        budget: Budget,
        guard: Guard,
        fit: Fit,
        progress: Progress,
        notebook: Notebook | None,
    ) -> None:
        self._scope, self._budget, self._guard = scope, budget, guard
        self._fit, self._progress, self._notebook = fit, progress, notebook
        self.fitted: dict[Plan, Sequence[Realised]] = {}
        self.measured: dict[Plan, Measured] = {}
        self.speeds: dict[Plan, float] = {}

    def realised(self, plan: Plan) -> Sequence[Realised]:
        """The plan's fitted candidates."""
        if plan not in self.fitted:
            self.fitted[plan] = self._fit(plan)
        return self.fitted[plan]

    def fits(self, plan: Plan) -> bool:
        """Whether a plan keeps to the limits on the held-out inputs."""
        if plan not in self.measured:
            self.measured[plan] = self._measure(plan)
            self._progress.step(f"{len(plan)} layers, error {self.measured[plan].error:.3g}")
        return not exceeded(self._budget, self.measured[plan])

    def _measure(self, plan: Plan) -> Measured:
        def figures() -> Figures:
            found = self._guard.held_out(self._build(plan))
            return found.error, found.drop, found.expected_drop

        fit = getattr(self._fit, "__qualname__", "as a whole")
        error, drop, expected = noted(self._notebook, lambda: plan_key(plan, fit), figures)
        return Measured(math.inf if error is None else error, drop, expected)

    def used(self, plan: Plan) -> float:
        """The share of the budget that a plan uses up: above 1 it exceeds a limit."""
        found = self._asked(plan)
        drops = [drop for drop in (found.drop, found.expected_drop) if drop is not None]
        return _share(self._budget, found.error, max(drops, default=0.0))

    def surely(self, plan: Plan) -> float:
        """Like `used`, by the surer estimate of a drop alone."""
        found = self._asked(plan)
        drop = found.drop if found.expected_drop is None else found.expected_drop
        return _share(self._budget, found.error, drop or 0.0)

    def _asked(self, plan: Plan) -> Measured:
        self.fits(plan)
        return self.measured[plan]

    def speedup(self, plan: Plan) -> float:
        """Measured speed-up of a plan."""
        if plan not in self.speeds:
            self.speeds[plan] = self._guard.speedup(self._build(plan))
            self._progress.step(f"{len(plan)} layers, {self.speeds[plan]:.2f}x")
        return self.speeds[plan]

    def fast(self, plan: Plan) -> bool:
        """Whether a plan reaches the speed-up asked for."""
        return self._budget.speedup is not None and self.speedup(plan) >= self._budget.speedup

    def _build(self, plan: Plan) -> ir.Model:
        return with_candidates(self._scope, self.realised(plan))


def choose(
    scope: Scope,
    plans: Sequence[Plan],
    budget: Budget,
    guard: Guard,
    progress: Progress,
    refit: Fit | None = None,
    notebook: Notebook | None = None,
    most_fits: int | None = None,
) -> Chosen:
    """The plan for a budget, out of a sequence that saves ever more and differs ever more.

    With a limit on error or drop: the fastest plan inside it. With a speed-up: the least error that
    reaches it. With both: whichever binds first. The search first uses each layer's own fit; with
    `refit` (which fits a plan as a whole, better and slower) it then goes on from there. What the
    notebook knows of a plan is not measured again. most_fits: that `refit` is asked for on the way;
    where they are few, few plans are measured before them as well.

    Raises:
        BudgetError: Only a speed-up was asked for, and nothing on offer reaches it.
    """
    progress.stage("Searching the budget", None)
    quick = _Search(scope, budget, guard, symmetric, progress, notebook)
    final = quick
    if refit is not None:
        final = _Search(scope, budget, guard, refit, progress, notebook)

    def chosen(found: Found) -> Chosen:
        return Chosen(found.plan, tuple(final.realised(found.plan)), found.bound_by, found.plans)

    if budget.max_error is None and budget.max_drop is None:
        reached = reaching(plans, quick.fast)
        if reached is None:
            most = quick.speedup(plans[-1])
            raise BudgetError(
                f"a speed-up of {budget.speedup:g}x cannot be reached: {most:.2f}x is the most"
            )
        return chosen(Found(reached, "speedup"))
    limit: Limit = "max_error" if budget.max_drop is None else "max_drop"
    if refit is None:
        found = within(plans, quick.fits, limit)
    else:
        points = CURVE_POINTS if most_fits is None else min(CURVE_POINTS, 3 * most_fits)
        expected = curve(plans, quick.surely, points)
        known = settle(plans, expected, final.fits, final.used, final.surely, most_fits)
        tries = _REFITTED_TRIES if most_fits is None or most_fits > _FEW_FITS else 0
        found = within(plans, final.fits, limit, known=known, tries=tries)
    if found.bound_by is not None and budget.max_error is not None and budget.max_drop is not None:
        found = Found(found.plans, _binding(budget, final.measured))
    if budget.speedup is not None:
        reached = reaching(found.plans, quick.fast)
        # Earlier plans are nearly always closer to the original, but only a measurement is a proof.
        if reached is not None and (not reached[-1] or final.fits(reached[-1])):
            found = Found(reached, "speedup")
    return chosen(found)


def _share(budget: Budget, error: float, drop: float) -> float:
    shares = [0.0]
    if budget.max_error is not None:
        shares.append(error / max(budget.max_error, 1e-9))
    if budget.max_drop is not None:
        shares.append(drop / max(budget.max_drop, 1e-9))
    return max(shares) if np.isfinite(shares).all() else math.inf


def exceeded(budget: Budget, measured: Measured) -> Limit | None:
    """The limit that a measurement breaks, or None.

    A drop must keep to its limit both as counted and, where that is known, as expected: what luck
    with the held-out samples gives is not taken.
    """
    if budget.max_error is not None and not measured.error <= budget.max_error:
        return "max_error"
    if budget.max_drop is not None and not all(
        (drop or 0.0) <= budget.max_drop for drop in (measured.drop, measured.expected_drop)
    ):
        return "max_drop"
    return None


def _binding(budget: Budget, measured: dict[Plan, Measured]) -> Limit:
    """Which limit the closest rejected plan broke."""
    rejected = [m for m in measured.values() if exceeded(budget, m)]
    closest = min(rejected, key=lambda m: m.error)
    return exceeded(budget, closest) or "max_error"
