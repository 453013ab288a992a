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
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.convenience import create_value_mapping

from graphopt.calibration.accumulate import Accumulator
from graphopt.calibration.collect import (
    LEAST_PATCHES,
    PATCHES_PER_INPUT,
    Collector,
    Probe,
    Sampled,
)
from graphopt.graph.dataflow import before
from graphopt.graph.edit import forget_names
from graphopt.graph.scope import Scope
from graphopt.planning.choices import Choice, place
from graphopt.planning.search import Plan
from graphopt.planning.workshop import Realised, is_large
from graphopt.progress import Silent
from graphopt.rewrites.approximate.layer import Layer
from graphopt.runtime import give_back_memory

Fit = Callable[[Plan], Sequence[Realised]]
"""Fits the candidates of a plan."""


@dataclass(frozen=True)
class Refitter:
    """Fits plans on the fitting inputs.

    probes, originals: by layer name. polish: take the time for better factors where the closed
    form is no optimum. most_waves: passes over the inputs a plan may take.
    """

    scope: Scope
    collector: Collector
    probes: Mapping[str, Probe]
    originals: Mapping[str, Sampled]
    polish: bool = True
    most_waves: int = 64

    def fit(self, plan: Plan) -> list[Realised]:
        """The plan's candidates with weights fitted asymmetrically, in topological order."""
        order = {node.outputs[0].name: i for i, node in enumerate(self.scope.graph)}
        choices = sorted(plan, key=lambda choice: order[choice.layer])
        step = max(1, -(-len(choices) // self.most_waves))
        model = self.scope.model.clone()
        forget_names(model)
        scope = Scope(model, model.graph, self.scope.infos)
        walk = self.collector.walk()
        done: list[Realised] = []
        for start in range(0, len(choices), step):
            wave = choices[start : start + step]
            if start == 0:  # nothing before it has changed: the symmetric fit is the asymmetric one
                fitted = [_own(choice, self.polish) for choice in wave]
            else:
                ahead = {choice.layer for choice in choices[start:]}
                probes = [_ready(self.probes[choice.layer], model, ahead) for choice in wave]
                seen = self.collector.rewritten(walk, model, probes, self.originals, Silent())
                with ThreadPoolExecutor(self.collector.threads) as pool:
                    fitted = list(pool.map(partial(_refitted, seen=seen, polish=self.polish), wave))
            for realised in fitted:
                place(scope, realised)
            done += fitted
            if any(is_large(choice.candidate.layer) for choice in wave):
                give_back_memory()
        return done


def _ready(probe: Probe, model: ir.Model, ahead: set[str]) -> Probe:
    """The probe, without its skip where that still depends on layers to be fitted."""
    if probe.skip is None:
        return probe
    value = create_value_mapping(model.graph, include_subgraphs=False).get(probe.skip)
    if value is None or any(
        output.name in ahead for node in before([value], set()) for output in node.outputs
    ):
        return replace(probe, skip=None)
    return probe


def _refitted(choice: Choice, seen: Mapping[str, Sequence[Accumulator]], polish: bool) -> Realised:
    """The asymmetric fit, or the symmetric one where what the layer sees is not finite."""
    found = [accumulator.moments() for accumulator in seen[choice.layer]]
    if all(np.isfinite(m.gram).all() and np.isfinite(m.cross).all() for m in found):
        return choice.candidate.refitted(found, polish)
    return choice.candidate.realised


def _own(choice: Choice, polish: bool) -> Realised:
    return choice.candidate.polished if polish else choice.candidate.realised


def multiplications(layers: Sequence[Layer]) -> float:
    """About how many a fit of a plan takes that takes all layers apart: moments, then factors."""
    sizes = [(layer.group, layer.inputs * layer.taps) for layer in layers]
    patches = [max(LEAST_PATCHES, PATCHES_PER_INPUT * size) for _, size in sizes]
    return sum(g * (n * d**2 + 8.0 * d**3) for n, (g, d) in zip(patches, sizes, strict=True))


def symmetric(plan: Plan) -> Sequence[Realised]:
    """The plan's candidates fitted each to its original input (or weight)."""
    return [choice.candidate.realised for choice in plan]


def polished(plan: Plan) -> Sequence[Realised]:
    """Like `symmetric`, with better factors where the closed form is no optimum."""
    return [choice.candidate.polished for choice in plan]
