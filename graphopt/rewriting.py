"""The rewriting of one model under a permit: exact rewrites to a fixpoint, then the plan.

A pure function of the model, the rewrites, the permit and the plan, so that blame can run it again
with fewer changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.graph.annotate import (
    Annotations,
    annotate,
    is_settled,
    restore,
    stamp,
    symbols_of,
)
from graphopt.graph.scope import Scope, site_of
from graphopt.graph.shapes import TensorInfo
from graphopt.rewrites.base import Decline, ExactRewrite, WholeModelPass
from graphopt.rewrites.cleanup.freeze_initializers import FreezeInitializers
from graphopt.rewrites.driver import Driver, Gate
from graphopt.rewrites.ledger import Applied, Key, Ledger, Permit, entry

if TYPE_CHECKING:  # the planner and --dense are loaded by those who use them
    from graphopt.planning.choices import Choice
    from graphopt.planning.workshop import Realised
    from graphopt.rewrites.dense.make import Dense


@dataclass(frozen=True)
class Rewritten:
    """A rewritten model, still annotated with shapes: what was done to it and what was not.

    dense: with `--dense`, what its maps are.
    """

    model: ir.Model
    scope: Scope
    applied: tuple[Applied, ...]
    declined: tuple[Decline, ...]
    annotations: Annotations
    dense: Dense | None = None

    @property
    def keys(self) -> tuple[Key, ...]:
        """What was done: with the model and the rewrites these determine the result."""
        return tuple(change.key for change in self.applied)


def rewrite_exactly(
    model: ir.Model,
    rewrites: Sequence[ExactRewrite | WholeModelPass],
    infos: Mapping[str, TensorInfo],
    gate: Gate,
    permit: Permit,
) -> Rewritten:
    """Apply the exact rewrites to a clone of the model until nothing changes.

    infos: concrete shapes of the model's values for the bound inputs.
    """
    clone = model.clone()
    annotations = annotate(clone, frozen=_frozen(clone, rewrites))
    known = dict(infos)
    driver = Driver(clone, known, Ledger(permit), gate)
    driver.to_fixpoint(rewrites)
    changes = 0
    while len(driver.ledger.applied) > changes and _may_know_more(clone):
        # Constants are folded, and new operators name dimensions that old ones had lost.
        changes = len(driver.ledger.applied)
        annotate(clone, frozen=_frozen(clone, rewrites))
        driver.to_fixpoint(rewrites)
    scope = Scope(clone, clone.graph, known)
    return Rewritten(
        clone, scope, tuple(driver.ledger.applied), tuple(driver.declined), annotations
    )


def _may_know_more(model: ir.Model) -> bool:
    """Whether there are dimensions without a name, of which inference may say more by now."""
    symbols = symbols_of(model.graph)
    outputs = (output for node in model.graph for output in node.outputs if output.name)
    return not all(is_settled(output, symbols) for output in outputs)


def _frozen(model: ir.Model, rewrites: Sequence[ExactRewrite | WholeModelPass]) -> bool:
    """Whether initializers that are listed as inputs will be constants."""
    return any(
        isinstance(rewrite, FreezeInitializers) and rewrite.decide(model)[1] is not None
        for rewrite in rewrites
    )


def apply_plan(
    done: Rewritten,
    plan: Sequence[tuple[Choice, Realised]],
    rewrites: Sequence[ExactRewrite | WholeModelPass],
    gate: Gate,
    permit: Permit,
) -> Rewritten:
    """Put a plan into a clone of an exactly rewritten model, as the permit allows, and clean up."""
    if not plan:
        return done
    clone = done.model.clone()
    known = dict(done.scope.infos)
    driver = Driver(clone, known, Ledger(permit, list(done.applied)), gate)
    scope = Scope(clone, clone.graph, known)
    for choice, realised in plan:
        node = next(n for n in clone.graph if n.outputs[0].name == choice.layer)
        proposal = realised.propose(scope, node)
        if not driver.ledger.admits(proposal.key):
            continue
        key, site = proposal.key, site_of(node)
        before, after = driver.apply(proposal, scope)
        timing = choice.timing
        driver.ledger.applied.append(
            entry(
                key,
                kind="approximate",
                site=site,
                options=proposal.options,
                before=before,
                after=after,
                predicted_error=choice.error,
                measured_error=choice.measured,
                latency_us=None
                if timing is None
                else (timing.before_us, timing.before_us * timing.ratio),
            )
        )
    driver.to_fixpoint(rewrites)
    return Rewritten(
        clone,
        scope,
        tuple(driver.ledger.applied),
        tuple(driver.declined),
        done.annotations,
        done.dense,
    )


def finished(done: Rewritten, version: str) -> ir.Model:
    """The model as it is written: annotations as the file had them, and where it comes from."""
    restore(done.model, done.annotations)
    counts: dict[str, int] = {}
    for change in done.applied:
        counts[change.name] = counts.get(change.name, 0) + 1
    if counts:
        stamp(done.model, version, counts)
    return done.model
