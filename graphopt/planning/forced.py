"""What `--ranks` names takes the place of a search: a structure chosen by a designer, not by price.

It is looked up in the exactly rewritten model, fitted and measured like anything a search would
choose, and put in whether it is faster or not. Exact rewrites then leave it as it was named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.cost.stopwatch import Stopwatch
from graphopt.errors import BudgetError, InputError
from graphopt.graph.scope import Scope, site_of
from graphopt.planning.budget import Budget
from graphopt.planning.choices import Choice, context_of, error_alone, time_candidate
from graphopt.planning.guard import Guard
from graphopt.planning.notebook import Notebook
from graphopt.planning.plan import exceeded
from graphopt.planning.ranks import Structure
from graphopt.planning.search import Plan
from graphopt.planning.workshop import Candidate, Realised, Workshop
from graphopt.progress import Progress
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.structure import cost
from graphopt.rewrites.base import OptionValue, Proposal
from graphopt.rewrites.respecting import MARK


@dataclass(frozen=True, eq=False)
class ForcedCandidate(Candidate):
    """A candidate that nobody has to choose; the report says so."""

    @property
    def options(self) -> Mapping[str, OptionValue]:
        """The ranks by name, and that they were given."""
        return {**super().options, "forced": True}


@dataclass(frozen=True, eq=False)
class ForcedLayer(Realised):
    """A fitted candidate whose nodes carry a mark, so that exact rewrites know it by that."""

    @classmethod
    def of(cls, realised: Realised) -> ForcedLayer:
        """The same, to be marked."""
        return cls(realised.candidate, realised.factored, realised.bias)

    def propose(self, scope: Scope, node: ir.Node) -> Proposal:
        """The proposal of any fitted candidate, with the mark."""
        proposal, layer = super().propose(scope, node), self.candidate.layer.name

        def edit() -> None:
            before = set(scope.graph)
            proposal.apply()
            for made in scope.graph:
                if made not in before:
                    made.metadata_props[MARK] = layer

        return replace(proposal, edit=edit)


def candidate_of(structure: Structure, workshop: Workshop) -> ForcedCandidate:
    """The candidate of a structure, worthwhile or not.

    Raises:
        InputError: What the layer sees on the fitting inputs is not finite.
    """
    layer, scheme, ranks = structure.layer, structure.scheme, structure.ranks
    moments = workshop.moments[layer.name]
    if not all(np.isfinite(part.gram).all() for part in moments):
        raise InputError(f"--ranks {_called(layer)}: what it sees on the data is not finite")
    made = workshop.decomposition(layer, scheme)
    rows = made.rows(ranks)
    if layer.name in workshop.weightings and any(row[-1].group > 1 for row in rows):
        # The last stage mixes no outputs, so it cannot take in what maps them back from a metric.
        workshop = Workshop(workshop.moments, workshop.block, method=workshop.method)
        made = workshop.decomposition(layer, scheme)
    composites, ratios = made.factors(ranks).composite, cost(layer, rows)
    if not all(map(np.isfinite, ratios)):
        raise InputError(f"--ranks {_called(layer)}: {scheme.name} is no structure for this layer")
    missed = sum(
        float(part.energy.sum()) * part.error(composite) ** 2
        for part, composite in zip(moments, composites, strict=True)
    )
    energy = sum(float(part.energy.sum()) for part in moments)
    error = float(np.sqrt(missed / energy)) if energy > 0 else 0.0
    return ForcedCandidate(layer, scheme, ranks, *ratios, error, workshop, rows)


def priced(
    candidates: Sequence[Candidate],
    scope: Scope,
    guard: Guard,
    stopwatch: Stopwatch | None,
    progress: Progress,
    notebook: Notebook | None = None,
) -> tuple[Plan, float | None]:
    """All of them with what they save and cost alone, and microseconds of the whole model.

    Nothing is turned down. Times are shares of the model's, as where there is a choice.
    """
    progress.stage("Pricing layers", len(candidates))
    nodes = {candidate: candidate.layer.node for candidate in candidates}
    contexts = {c.layer.name: context_of(scope, node) for c, node in nodes.items()}
    shares = {} if stopwatch is None else stopwatch.shares(scope, contexts)
    times = [share.before_us for share in shares.values()]
    whole_us = float(np.quantile(times, 0.25)) if times else None
    plan: list[Choice] = []
    for candidate, node in nodes.items():
        name = candidate.layer.name
        timing = None if stopwatch is None else time_candidate(scope, node, candidate, stopwatch)
        if timing is not None and whole_us is not None and name in shares:
            timing = timing.of(shares[name].ratio * whole_us)
        saved = 0.0 if timing is None else timing.before_us - timing.after_us
        alone = error_alone(scope, candidate, guard, notebook)
        plan.append(Choice(name, candidate, saved, alone, timing, measured=alone))
        progress.step(node.name or name)
    return tuple(plan), whole_us


def keep_to(budget: Budget, guard: Guard, model: ir.Model) -> None:
    """Raise BudgetError if a model with all of the structures in place breaks a limit."""
    if budget.max_error is not None or budget.max_drop is not None:
        found = guard.held_out(model)
        limit = exceeded(budget, found)
        if limit == "max_error":
            raise BudgetError(
                f"with --ranks the outputs are off by {found.error:.3g}, more than --max-error "
                f"{budget.max_error:g}: give larger ranks or other schemes"
            )
        if limit is not None:
            drops = [drop for drop in (found.drop, found.expected_drop) if drop is not None]
            raise BudgetError(
                f"with --ranks the metric falls by {max(drops):.4f}, more than --max-drop "
                f"{budget.max_drop:g} (the outputs are off by {found.error:.3g}): give larger ranks"
            )
    if budget.speedup is not None:
        reached = guard.speedup(model)
        if reached < budget.speedup:
            raise BudgetError(
                f"with --ranks the model is {reached:.2f}x as fast, not the {budget.speedup:g}x "
                "that --speedup asks for"
            )


def remarks(plan: Plan) -> Iterator[str]:
    """What a designer should know of a structure: that it saves nothing, or is not faster."""
    for choice in plan:
        chosen, timing = choice.candidate, choice.timing
        where = f"{_called(chosen.layer)}: {chosen.rewrite} {'x'.join(map(str, chosen.ranks))}"
        if chosen.macs_ratio >= 1 and chosen.parameters_ratio >= 1:
            yield (
                f"{where} saves nothing ({chosen.macs_ratio:.2f} of the layer's multiplications, "
                f"{chosen.parameters_ratio:.2f} of its weights); --ranks asked for it"
            )
        elif timing is not None and timing.ratio_high >= 1:
            yield (
                f"{where} is not measurably faster ({timing.ratio:.2f} of the layer's time); "
                "--ranks asked for it"
            )


def _called(layer: Layer) -> str:
    return site_of(layer.node)[0]
