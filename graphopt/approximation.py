"""The approximate stage: what is on offer, what it is worth, and the plan the budget allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from graphopt.calibration.batch_statistics import recorded_moments, with_means
from graphopt.calibration.collect import Collector, Probe, Sampled
from graphopt.calibration.patches import Geometry
from graphopt.calibration.sensitivity import sensitivities
from graphopt.calibration.synthetic import draw
from graphopt.cost.channel_block import channel_block
from graphopt.cost.recall import Recall
from graphopt.cost.table import LatencyTable
from graphopt.errors import BudgetError
from graphopt.factorize.moments import Moments
from graphopt.factorize.weighting import Weighting
from graphopt.graph.scope import Scope, site_of
from graphopt.job import Job
from graphopt.planning.budget import Budget, Limit
from graphopt.planning.choices import Choice, price, with_candidates
from graphopt.planning.fitting import Refitter
from graphopt.planning.guard import Guard
from graphopt.planning.menus import layers_of, menus
from graphopt.planning.plan import choose
from graphopt.planning.screening import estimates, low_rank
from graphopt.planning.workshop import Realised, Workshop, identity_moments
from graphopt.progress import Progress
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.base import Decline
from graphopt.rewrites.ledger import Permit
from graphopt.rewriting import Rewritten
from graphopt.runtime import Array
from graphopt.verification.compare import Reference
from graphopt.verification.guard import ReferenceGuard

FITTING_SAMPLES = 512
"""Samples that moments are gathered from (more gain next to nothing)."""

_SENSITIVITY_SAMPLES = 64
_GRADIENT_SAMPLES = 256

Plan = tuple[tuple[Choice, Realised], ...]
"""Choices with their fitted weights."""


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
    # Without a budget only exactly low-rank weights matter, which iterative fits do not find.
    schemes = [s for s in job.selection.approximate if options.budget.given or not s.iterative]
    guard = _guard(job)
    if not schemes:
        _demand_speedup(options.budget, scope, guard)
        return Approximation()
    layers, declined = layers_of(scope, schemes)
    budget = options.budget
    available: tuple[tuple[float, float], ...] = ()
    if not budget.given:
        budget = Budget(max_error=job.limits.error or 0.0)
        available = estimates(scope, layers)
        layers, full = _screened(layers, budget.max_error or 0.0)
        declined += full
    workshop, refitter = _workshop(job, scope, layers)
    offered, refused = menus(layers, schemes, workshop, job.progress)
    declined += refused
    offered = {
        name: allowed
        for name, candidates in offered.items()
        if (allowed := [c for c in candidates if (c.rewrite, name) not in permit.blocked])
    }
    if not options.budget.given:
        most = budget.max_error or 0.0
        offered = {
            n: near for n, cs in offered.items() if (near := [c for c in cs if c.error <= most])
        }
    if not offered:
        _demand_speedup(options.budget, scope, guard)
        return Approximation(declined=tuple(declined), available=available)
    timer = job.stopwatch or Recall(LatencyTable(), options.threads)
    priced, slower = price(scope, offered, guard, timer, job.progress)
    refit = None if refitter is None or not options.budget.given else refitter.fit
    found = choose(scope, priced, budget, guard, job.progress, refit)
    all_declined = (*declined, *slower)
    if found.plan and job.stopwatch is not None:
        result = with_candidates(scope, found.realised)
        if guard.speedup(result) <= guard.speedup(scope.model):
            return Approximation((), None, all_declined, available, slower=True)
    by_layer = {realised.candidate.layer.name: realised for realised in found.realised}
    job.progress.stage("Measuring each layer's share", len(found.plan))
    plan = tuple(
        (
            _measured(scope, choice, guard, job.progress),
            by_layer[choice.layer],
        )
        for choice in found.plan
    )
    return Approximation(plan, found.bound_by, all_declined, available)


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


def _measured(scope: Scope, choice: Choice, guard: Guard, progress: Progress) -> Choice:
    alone = with_candidates(scope, [choice.candidate.realised])
    progress.step(choice.layer)
    return replace(choice, measured=guard.fitting_error(alone))


def _workshop(job: Job, scope: Scope, layers: Sequence[Layer]) -> tuple[Workshop, Refitter | None]:
    """Moments of the layers from the fitting data, or from the weights alone without real data."""
    fitting = job.inputs.split.fitting.first(FITTING_SAMPLES)
    block = channel_block()
    fitted = fitting.source == "data" and fitting.batches and job.options.budget.given
    if not layers or not fitted:
        return Workshop(_without_data(job, scope, layers), block), None
    probes = {layer.name: _probe(layer) for layer in layers}
    collector = Collector(fitting, job.options.seed, job.options.threads)
    job.progress.stage("Gathering statistics", len(fitting.batches))
    seen: Mapping[str, Sampled] = collector.original(
        scope.model, list(probes.values()), job.progress
    )
    moments = {
        name: [accumulator.moments().shrunk() for accumulator in sampled.accumulators]
        for name, sampled in seen.items()
    }
    weightings = _weightings(job, scope, layers)
    return Workshop(moments, block, weightings), Refitter(scope, collector, probes, seen)


def _without_data(job: Job, scope: Scope, layers: Sequence[Layer]) -> Mapping[str, list[Moments]]:
    """The weights alone; inside a budget with what the file's batch statistics tell of the means."""
    alone = {layer.name: identity_moments(layer) for layer in layers}
    if not job.options.budget.given:
        return alone
    original = Scope(job.source.model, job.source.model.graph, job.infos)
    return with_means(layers, alone, recorded_moments(original, scope, layers))


def _weightings(
    job: Job, scope: Scope, layers: Sequence[Layer]
) -> dict[str, tuple[Weighting, ...]]:
    """The metric of the outputs for every layer's response; none where there is no adjoint."""
    few = job.inputs.split.fitting.first(_GRADIENT_SAMPLES)
    job.progress.stage("Gathering sensitivities", len(few.batches))
    found = sensitivities(
        scope,
        [layer.name for layer in layers],
        few,
        seed=job.options.seed,
        threads=job.options.threads,
        progress=job.progress,
    )
    if isinstance(found, str):
        return {}
    return {
        layer.name: tuple(
            Weighting.of(part) for part in _diagonal_blocks(found[layer.name], layer.group)
        )
        for layer in layers
    }


def _diagonal_blocks(metric: Array, count: int) -> list[Array]:
    size = len(metric) // count
    return [metric[i : i + size, i : i + size] for i in range(0, len(metric), size)]


def _probe(layer: Layer) -> Probe:
    source = layer.node.inputs[0]
    assert source is not None
    geometry = Geometry(layer.kernel, layer.strides, layer.dilations, layer.pads, layer.group)
    matrix = layer.weight.reshape(len(layer.weight), -1)
    return Probe(layer.name, source.name or "", geometry, matrix, layer.bias)


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
