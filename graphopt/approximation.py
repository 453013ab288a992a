"""The approximate stage: what is on offer, what it is worth, and the plan the budget allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from graphopt.calibration.synthetic import draw
from graphopt.cost.channel_block import channel_block
from graphopt.cost.counts import macs
from graphopt.errors import BudgetError
from graphopt.graph.scope import Scope
from graphopt.planning.budget import Budget, Limit
from graphopt.planning.choices import Choice, menus, price, with_candidates
from graphopt.planning.guard import Guard
from graphopt.planning.plan import choose
from graphopt.planning.search import Plan
from graphopt.progress import Progress
from graphopt.rewrites.base import Decline, Menu
from graphopt.rewrites.ledger import Permit
from graphopt.verification.compare import Reference
from graphopt.verification.guard import ReferenceGuard

if TYPE_CHECKING:
    from graphopt.pipeline import Job
    from graphopt.rewriting import Rewritten

_SENSITIVITY_SAMPLES = 64

_ESTIMATED = (0.01, 0.05)
"""Errors for which the report estimates what could be saved, when no budget was given."""


@dataclass(frozen=True)
class Approximation:
    """The plan, what ended the search, what was declined, and estimates when there was no budget.

    slower: the whole plan was measured and is not faster than the exactly rewritten model.
    """

    plan: Plan = ()
    bound_by: Limit | None = None
    declined: tuple[Decline, ...] = ()
    available: tuple[tuple[float, float], ...] = ()
    slower: bool = False


def approximate(job: Job, exact: Rewritten, permit: Permit) -> Approximation:
    """Search for the fastest plan inside the budget; without a budget, inside the exact tolerance."""
    options, scope = job.options, exact.scope
    if not options.verify:
        return Approximation()
    job.progress.stage("Factorizing")
    # Without a budget only exactly low-rank weights matter, which iterative fits do not find.
    rewrites = [r for r in job.selection.approximate if options.budget.given or r.spectral]
    offered, declined = menus(scope, rewrites, channel_block())
    offered = [_permitted(menu, permit) for menu in offered]
    budget = options.budget
    available: tuple[tuple[float, float], ...] = ()
    if not budget.given:
        available = _estimates(scope, offered)
        tolerance = job.limits.error or 0.0
        budget = Budget(max_error=tolerance)
        offered = [_closer_than(menu, tolerance) for menu in offered]
    offered = [menu for menu in offered if menu.candidates]
    guard = _guard(job)
    if not offered:
        _demand_speedup(options.budget, scope, guard)
        return Approximation(declined=tuple(declined), available=available)
    priced, slower = price(scope, offered, guard, job.stopwatch, job.progress)
    found = choose(scope, priced, budget, guard, job.progress)
    refused = (*declined, *slower)
    if found.plan and job.stopwatch is not None:
        chosen = [(choice.layer, choice.candidate) for choice in found.plan]
        if guard.speedup(with_candidates(scope, chosen)) <= guard.speedup(scope.model):
            return Approximation((), None, refused, available, slower=True)
    job.progress.stage("Measuring each layer's share", len(found.plan))
    plan = tuple(_measured(scope, choice, guard, job.progress) for choice in found.plan)
    return Approximation(plan, found.bound_by, refused, available)


def _demand_speedup(budget: Budget, scope: Scope, guard: Guard) -> None:
    """Raise BudgetError if the exact rewrites alone do not reach a speed-up that was asked for."""
    if budget.speedup is None or budget.max_error is not None or budget.max_drop is not None:
        return
    most = guard.speedup(scope.model)
    if most < budget.speedup:
        raise BudgetError(
            f"a speed-up of {budget.speedup:g}x cannot be reached: {most:.2f}x is the most"
        )


def _measured(scope: Scope, choice: Choice, guard: Guard, progress: Progress) -> Choice:
    alone = with_candidates(scope, [(choice.layer, choice.candidate)])
    progress.step(choice.layer)
    return replace(choice, measured=guard.fitting_error(alone))


def _permitted(menu: Menu, permit: Permit) -> Menu:
    layer = menu.node.outputs[0].name or ""
    kept = tuple(c for c in menu.candidates if (c.rewrite, layer) not in permit.blocked)
    return replace(menu, candidates=kept)


def _closer_than(menu: Menu, error: float) -> Menu:
    return replace(menu, candidates=tuple(c for c in menu.candidates if c.error <= error))


def _guard(job: Job) -> ReferenceGuard:
    parts, path, threads = job.inputs.split, job.source.path, job.options.threads
    fitting = parts.fitting if parts.fitting.batches else parts.held_out
    timing = draw(job.source.model.graph, job.inputs.shapes, job.options.seed, batches=1)
    return ReferenceGuard(
        original=path,
        fitting=Reference(path, fitting.first(_SENSITIVITY_SAMPLES), threads),
        evaluation=Reference(path, parts.held_out, threads, job.reference.metric),
        timing=timing.batches[0].feeds,
        threads=threads,
    )


def _estimates(scope: Scope, offered: Sequence[Menu]) -> tuple[tuple[float, float], ...]:
    """(error, MACs after / before) if every layer took its cheapest candidate of that weight error."""
    total = sum(macs(node, scope.infos) for node in scope.graph)
    found = []
    for error in _ESTIMATED:
        saved: dict[str, float] = {}
        for menu in offered:
            layer = menu.node.outputs[0].name or ""
            for candidate in _closer_than(menu, error).candidates:
                gain = macs(menu.node, scope.infos) * (1 - candidate.macs_ratio)
                saved[layer] = max(saved.get(layer, 0.0), gain)
        if saved and total:
            found.append((error, 1 - sum(saved.values()) / total))
    return tuple(found)
