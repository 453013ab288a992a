"""The gate for rewrites that are exact but not always faster: taken only where measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from graphopt.graph.scope import Scope
from graphopt.graph.shapes import is_batch_dynamic
from graphopt.rewrites.base import ExactRewrite, Proposal
from graphopt.rewrites.driver import Verdict

if TYPE_CHECKING:  # a run that measures nothing does without
    from graphopt.cost.stopwatch import Stopwatch

_BATCHES = (1, 8)
"""Batches a model with an open batch dimension is measured at."""


@dataclass(frozen=True)
class MeasuredGate:
    """Accepts a proposal that is not slower at any batch the model can be run with.

    "Not slower": the upper end of the 95 % interval of the ratio is at most 1. Without a stopwatch
    nothing is measured and so nothing is accepted.
    """

    stopwatch: Stopwatch | None

    def __call__(self, rewrite: ExactRewrite, proposal: Proposal, scope: Scope) -> Verdict:
        """Measure the proposal on a fragment of its own."""
        if self.stopwatch is None:
            return Verdict(False, "not measured (--no-bench), and it is not always faster")
        dynamic = is_batch_dynamic(scope.model.graph)
        first = None
        for batch in _BATCHES if dynamic else (None,):
            timing = self.stopwatch.rewritten(
                scope, proposal.nodes, lambda fragment: _apply(rewrite, fragment), batch=batch
            )
            if timing is None:
                return Verdict(False, "it could not be measured on its own")
            first = first or timing
            if timing.ratio_high > 1:
                at = "" if batch is None else f" at batch {batch}"
                return Verdict(
                    False, f"not faster{at}: {timing.ratio:.2f} of the time, measured", timing
                )
        return Verdict(True, timing=first)


def _apply(rewrite: ExactRewrite, fragment: Scope) -> bool:
    for finding in rewrite.propose(fragment):
        if isinstance(finding, Proposal):
            finding.apply()
            return True
    return False
