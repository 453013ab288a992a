"""Fitting a whole plan: layer after layer, each to the input that it will really see.

In topological order, a few layers at a time ("waves"): run the model with everything before the
wave already factored, gather the moments of what its layers see against the original responses, and
refit them to these. So errors made early are corrected for later, through branches and residual
additions alike. Layers of one wave do not see each other's errors.
Source: Zhang et al. 2016, "Accelerating very deep convolutional networks" (asymmetric
reconstruction).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.calibration.collect import Collector, Probe, Sampled
from graphopt.factorize.moments import Moments
from graphopt.graph.scope import Scope
from graphopt.planning.choices import with_candidates
from graphopt.planning.search import Plan
from graphopt.planning.workshop import Candidate, Realised
from graphopt.progress import Silent

Fit = Callable[[Plan], Sequence[Realised]]
"""Fits the candidates of a plan."""


@dataclass(frozen=True)
class Refitter:
    """Fits plans on the fitting inputs.

    probes, originals: by layer name. most_waves: passes over the inputs a plan may take.
    """

    scope: Scope
    collector: Collector
    probes: Mapping[str, Probe]
    originals: Mapping[str, Sampled]
    most_waves: int = 16

    def fit(self, plan: Plan) -> list[Realised]:
        """The plan's candidates with weights fitted asymmetrically, in topological order."""
        order = {node.outputs[0].name: i for i, node in enumerate(self.scope.graph)}
        choices = sorted(plan, key=lambda choice: order[choice.layer])
        step = -(-len(choices) // self.most_waves)
        done: list[Realised] = []
        for start in range(0, len(choices), max(step, 1)):
            wave = choices[start : start + step]
            if not done:  # nothing before it has changed: the symmetric fit is the asymmetric one
                done += [choice.candidate.realised for choice in wave]
                continue
            model = with_candidates(self.scope, done)
            seen = self.collector.rewritten(
                model, [self.probes[c.layer] for c in wave], self.originals, Silent()
            )
            done += [
                _refitted(choice.candidate, [a.moments() for a in seen[choice.layer]])
                for choice in wave
            ]
        return done


def _refitted(candidate: Candidate, seen: Sequence[Moments]) -> Realised:
    """The asymmetric fit, or the symmetric one where what the layer sees is not finite."""
    if all(np.isfinite(m.gram).all() and np.isfinite(m.cross).all() for m in seen):
        return candidate.refitted(seen)
    return candidate.realised


def symmetric(plan: Plan) -> Sequence[Realised]:
    """The plan's candidates fitted each to its original input (or weight)."""
    return [choice.candidate.realised for choice in plan]
