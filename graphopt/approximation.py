"""The approximate stage: what is on offer, what it is worth, and the plan the budget allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from graphopt.approximated import Approximation, Plan
from graphopt.calibration.synthetic import draw
from graphopt.cost.latency import SURE
from graphopt.cost.recall import Recall
from graphopt.cost.table import LatencyTable
from graphopt.errors import BudgetError
from graphopt.evidence import gather
from graphopt.graph.scope import Scope, site_of
from graphopt.job import Job
from graphopt.planning.budget import Budget
from graphopt.planning.caution import caution
from graphopt.planning.choices import Choice, error_alone, price, with_candidates
from graphopt.planning.fitting import symmetric
from graphopt.planning.forced import ForcedLayer, candidate_of, keep_to, priced, remarks
from graphopt.planning.frontier import stops
from graphopt.planning.guard import Guard
from graphopt.planning.menus import layers_of, menus
from graphopt.planning.notebook import Notebook
from graphopt.planning.plan import choose
from graphopt.planning.ranks import parse, structures
from graphopt.planning.screening import estimates, low_rank
from graphopt.planning.search import Plan as Choices
from graphopt.planning.search import sequence
from graphopt.planning.search_effort import SearchEffort, search_effort
from graphopt.planning.uniform import uniform
from graphopt.planning.workshop import Candidate, Realised
from graphopt.progress import Progress
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.base import Decline
from graphopt.rewrites.ledger import Permit
from graphopt.rewriting import Rewritten
from graphopt.runtime import cores
from graphopt.verification.compare import Reference
from graphopt.verification.guard import ReferenceGuard
from graphopt.verification.trials import Trials


def approximate(job: Job, exact: Rewritten, permit: Permit) -> Approximation:
    """Search for the fastest plan inside the budget; without a budget, inside the exact tolerance.

    With `--ranks` there is nothing to search for.
    """
    options, scope = job.options, exact.scope
    if not options.verify:
        return Approximation()
    if options.ranks is not None:
        return _forced(job, exact, options.ranks)
    # Without a budget only exactly low-rank weights matter, which iterative fits do not find.
    schemes = [s for s in job.selection.approximate if options.budget.given or not s.iterative]
    layers, declined = layers_of(scope, schemes)
    effort = search_effort(scope, layers)
    guard = _guard(job, scope, effort)
    if not schemes:
        _demand_speedup(options.budget, scope, guard)
        return Approximation()
    budget = options.budget
    available: tuple[tuple[float, float], ...] = ()
    if not budget.given:
        budget = Budget(max_error=job.limits.error or 0.0)
        available = estimates(scope, layers)
        layers, full = _screened(layers, budget.max_error or 0.0)
        declined += full
    chapter = None if job.records is None else job.records.chapter(repr(exact.keys))
    workshop, refit = gather(job, scope, layers, chapter)
    most = math.inf if options.budget.given else budget.max_error or 0.0

    def offered() -> Iterator[tuple[str, Sequence[Candidate]]]:
        for menu in menus(layers, schemes, workshop, effort.offered):
            declined.extend(menu.declined)
            yield (
                menu.layer,
                [
                    candidate
                    for candidate in menu.candidates
                    if (candidate.rewrite, menu.layer) not in permit.blocked
                    and candidate.error * caution(candidate.layer.node) <= most
                ],
            )

    timer = job.stopwatch or Recall(LatencyTable(), options.threads)
    names = [layer.name for layer in layers]
    prices = price(scope, names, offered(), guard, timer, job.progress, chapter, effort.probed)
    if effort.large:  # the weights that a plan is likely to ask for are made
        workshop.forget()
    if not prices.options:
        _demand_speedup(options.budget, scope, guard)
        every = (*declined, *prices.declined)
        return Approximation(declined=every, available=available)
    plans = (sequence if options.method.global_choice else uniform)(prices.options)
    found = choose(scope, plans, budget, guard, job.progress, refit, chapter, effort.fits)
    all_declined = (*declined, *prices.declined)
    if found.plan and job.stopwatch is not None:
        result = with_candidates(scope, found.realised)
        if guard.speedup(result) <= guard.speedup(scope.model):
            return Approximation((), None, all_declined, available, slower=True)

    def shared(chosen: Choices, fitted: Sequence[Realised]) -> Plan:
        by_layer = {realised.candidate.layer.name: realised for realised in fitted}
        job.progress.stage("Measuring each layer's share", len(chosen))
        return tuple(
            (_measured(scope, choice, guard, job.progress, chapter), by_layer[choice.layer])
            for choice in chosen
        )

    closer = stops(found.plans, options.pareto)[:-1] if options.pareto else []
    return Approximation(
        shared(found.plan, found.realised),
        found.bound_by,
        all_declined,
        available,
        whole_us=prices.whole_us,
        closer=tuple(shared(one, (refit or symmetric)(one)) for one in closer),
    )


def _forced(job: Job, exact: Rewritten, ranks: str) -> Approximation:
    """The plan that `--ranks` names, inside the budget if there is one."""
    scope, model = exact.scope, job.source.model
    wanted = structures(parse(ranks), scope, job.selection.approximate, model.graph, exact.applied)
    layers = [structure.layer for structure in wanted]
    about = repr((exact.keys, [layer.name for layer in layers]))
    chapter = None if job.records is None else job.records.chapter(about)
    # What was asked for may cost anything: it is fitted as inside the widest budget.
    options = replace(job.options, budget=Budget(max_error=math.inf))
    workshop, refit = gather(replace(job, options=options), scope, layers, chapter)
    candidates = [candidate_of(structure, workshop) for structure in wanted]
    guard = _guard(job, scope, search_effort(scope, layers))
    stopwatch = job.stopwatch and replace(job.stopwatch, effort=SURE)
    plan, whole_us = priced(candidates, scope, guard, stopwatch, job.progress, chapter)
    job.progress.stage("Fitting", None)
    fitted = {one.candidate.layer.name: one for one in (refit or symmetric)(plan)}
    keep_to(job.options.budget, guard, with_candidates(scope, list(fitted.values())))
    return Approximation(
        tuple((choice, ForcedLayer.of(fitted[choice.layer])) for choice in plan),
        whole_us=whole_us,
        remarks=tuple(remarks(plan)),
    )


def _screened(layers: Sequence[Layer], tolerance: float) -> tuple[list[Layer], list[Decline]]:
    """The layers that are exactly of low rank, and the others with what would allow more."""
    kept = low_rank(layers, tolerance)
    names = {layer.name for layer in kept}
    reason = "its weight is not of low rank: only a budget (--max-error, --max-drop) allows more"
    return kept, [
        Decline("low-rank", site_of(layer.node), reason)
        for layer in layers
        if layer.name not in names
    ]


def _demand_speedup(budget: Budget, scope: Scope, guard: Guard) -> None:
    """Raise BudgetError if the exact rewrites alone do not reach a speed-up that was asked for."""
    if budget.speedup is None or budget.max_error is not None or budget.max_drop is not None:
        return
    most = guard.speedup(scope.model)
    if most < budget.speedup:
        raise BudgetError(
            f"a speed-up of {budget.speedup:g}x cannot be reached: {most:.2f}x is the most"
        )


def _measured(
    scope: Scope, choice: Choice, guard: Guard, progress: Progress, notebook: Notebook | None
) -> Choice:
    progress.step(choice.layer)
    return replace(choice, measured=error_alone(scope, choice.candidate, guard, notebook))


def _guard(job: Job, scope: Scope, effort: SearchEffort) -> ReferenceGuard:
    parts, path, threads = job.inputs.split, job.source.path, job.options.threads
    dense = job.options.dense
    fitting = parts.fitting if parts.fitting.batches else parts.held_out
    if effort.large:
        fitting = fitting.first(effort.samples).in_batches(effort.samples)
    tried_on = Reference(path, fitting.first(effort.samples), cores(), maps=dense)
    timing = draw(job.source.model.graph, job.inputs.shapes, job.options.seed, batches=1)
    return ReferenceGuard(
        original=path,
        fitting=Trials(tried_on, scope.model, emptied=effort.large),
        evaluation=Reference(path, parts.held_out, cores(), job.reference.metric, maps=dense),
        timing=timing.batches[0].feeds,
        threads=threads,
    )
