"""Menus with prices: what every candidate of every layer saves and is expected to cost in error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_low

import onnx_ir as ir

from graphopt.cost.counts import macs
from graphopt.cost.latency import Timing
from graphopt.cost.stopwatch import Stopwatch
from graphopt.graph.edit import forget_names
from graphopt.graph.scope import Scope, follower, is_op
from graphopt.planning.guard import Guard
from graphopt.progress import Progress
from graphopt.rewrites.base import ApproximateRewrite, Candidate, Decline, Menu

_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "PRelu")

_MACS_PER_US = 20_000.0
"""Stands in for measured times with --no-bench: only ratios between layers matter."""


_ROUNDING = 1e-5
"""Weight errors below this are lost in the rounding of float32 outputs."""


@dataclass(frozen=True, eq=False)
class Choice:
    """One candidate for one layer with what it saves (microseconds) and costs (output error).

    layer: name of the layer's output value, which identifies it in every clone of the model.
    measured: output error on the fitting inputs with only this choice in place, once measured.
    """

    layer: str
    candidate: Candidate
    saved_us: float
    error: float
    timing: Timing | None
    measured: float | None = None


@dataclass(frozen=True)
class Options:
    """Everything that can be chosen for one layer."""

    layer: str
    choices: tuple[Choice, ...]


def menus(
    scope: Scope, rewrites: Sequence[ApproximateRewrite], channel_block: int
) -> tuple[list[Menu], list[Decline]]:
    """The menus of all layers of a graph (one per layer and rewrite), and the declined sites."""
    found: list[Menu] = []
    declined: list[Decline] = []
    for node in scope.graph:
        for rewrite in rewrites:
            offer = rewrite.menu(node, scope, channel_block)
            if isinstance(offer, Decline):
                declined.append(offer)
            elif offer is not None:
                found.append(offer)
    return found, declined


def apply(scope: Scope, layer: str, candidate: Candidate) -> None:
    """Put a candidate in the place of a layer, found by its output's name."""
    node = next(n for n in scope.graph if n.outputs[0].name == layer)
    candidate.propose(scope, node).apply()


def with_candidates(scope: Scope, chosen: Sequence[tuple[str, Candidate]]) -> ir.Model:
    """A clone of the scope's model with these candidates in place."""
    clone = scope.model.clone()
    forget_names(clone)
    copy = Scope(clone, clone.graph, scope.infos)
    for layer, candidate in chosen:
        apply(copy, layer, candidate)
    return clone


def price(
    scope: Scope,
    offered: Sequence[Menu],
    guard: Guard,
    stopwatch: Stopwatch | None,
    progress: Progress,
) -> tuple[list[Options], list[Decline]]:
    """Measure what is offered: latency of every candidate, output sensitivity of every layer.

    A candidate that is not measurably faster than its layer is dropped. The error of a candidate
    is its weight error times the layer's sensitivity, measured end to end for one candidate per
    layer. Without a stopwatch, MACs stand in for time.
    """
    by_layer: dict[str, list[Menu]] = {}
    for menu in offered:
        by_layer.setdefault(menu.node.outputs[0].name or "", []).append(menu)
    progress.stage("Pricing layers", len(by_layer))
    priced: list[Options] = []
    refused: list[Decline] = []
    for layer, layer_menus in by_layer.items():
        node = layer_menus[0].node
        timed: list[tuple[Candidate, float, Timing | None]] = []
        for menu in layer_menus:
            kept = [(c, *_saved(scope, node, c, stopwatch)) for c in menu.candidates]
            faster = [item for item in kept if item[1] > 0]
            timed += faster
            if not faster:
                name = menu.candidates[0].rewrite
                reason = "no candidate is measurably faster than the layer"
                refused.append(Decline(name, (node.name or layer,), reason))
        sensitivity = _sensitivity(scope, layer, [c for c, _, _ in timed], guard)
        if not math.isfinite(sensitivity):
            reason = "the outputs are not finite, or no longer zero, with a candidate in place"
            for name in dict.fromkeys(candidate.rewrite for candidate, _, _ in timed):
                refused.append(Decline(name, (node.name or layer,), reason))
        elif timed:
            priced.append(
                Options(
                    layer,
                    tuple(
                        Choice(layer, c, saved, sensitivity * c.error, timing)
                        for c, saved, timing in timed
                    ),
                )
            )
        progress.step(node.name or layer)
    return priced, refused


def _saved(
    scope: Scope, node: ir.Node, candidate: Candidate, stopwatch: Stopwatch | None
) -> tuple[float, Timing | None]:
    if stopwatch is None:
        return macs(node, scope.infos) * (1 - candidate.macs_ratio) / _MACS_PER_US, None
    timing = time_candidate(scope, node, candidate, stopwatch)
    if timing is None or timing.ratio_high >= 1:
        return 0.0, timing
    return timing.before_us * (1 - timing.ratio), timing


def time_candidate(
    scope: Scope, node: ir.Node, candidate: Candidate, stopwatch: Stopwatch
) -> Timing | None:
    """Time a layer against a candidate for it, both with the activation behind them."""
    layer = node.outputs[0].name or ""

    def rewrite(fragment: Scope) -> bool:
        apply(fragment, layer, candidate)
        return True

    return stopwatch.rewritten(scope, context_of(scope, node), rewrite)


def context_of(scope: Scope, node: ir.Node) -> list[ir.Node]:
    """A layer with the activation that onnxruntime fuses into it."""
    after = follower(scope, node)
    return [node] if after is None or not is_op(after, *_ACTIVATIONS) else [node, after]


def _sensitivity(scope: Scope, layer: str, candidates: Sequence[Candidate], guard: Guard) -> float:
    """Output error per unit of weight error, from the candidate with the median weight error.

    Candidates that are exact up to rounding tell nothing; with no others, the two are taken as equal.
    """
    errors = [candidate.error for candidate in candidates if candidate.error > _ROUNDING]
    if not errors:
        return 1.0
    middle = median_low(errors)
    probe = next(c for c in candidates if c.error == middle)
    return guard.fitting_error(with_candidates(scope, [(layer, probe)])) / probe.error
