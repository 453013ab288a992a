"""Prices: what every candidate of every layer saves and is expected to cost in output error."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.cost.counts import macs
from graphopt.cost.latency import Timing
from graphopt.cost.recall import Recall
from graphopt.cost.stopwatch import Stopwatch
from graphopt.graph.edit import forget_names
from graphopt.graph.scope import Scope, follower, is_op
from graphopt.planning.caution import caution
from graphopt.planning.guard import Guard
from graphopt.planning.hull import hull
from graphopt.planning.menus import log_error
from graphopt.planning.notebook import Figures, Notebook, noted, probe_key
from graphopt.planning.workshop import Candidate, Realised
from graphopt.progress import Progress
from graphopt.rewrites.base import Decline

_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "PRelu")

_MACS_PER_US = 20_000.0
"""Stands in for times that nothing is known of: only ratios between layers matter."""

PROBED = 5
"""Candidates of a layer whose output error is measured; the rest is interpolated."""

Timer = Stopwatch | Recall
"""Who is asked how long something takes: one that measures, or one that knows the table alone."""


@dataclass(frozen=True, eq=False)
class Choice:
    """One candidate for one layer with what it saves (microseconds) and costs (output error).

    layer: name of the layer's output value, which identifies it in every clone of the model.
    error: what to expect, weighed by the layer's `caution`.
    timing: as measured; None where the saving is a prediction.
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


@dataclass(frozen=True)
class Prices:
    """What can be chosen for every layer, what cannot, and microseconds of the whole model.

    whole_us: that the choices' times are shares of; None where nothing was measured.
    """

    options: tuple[Options, ...]
    declined: tuple[Decline, ...]
    whole_us: float | None = None


def place(scope: Scope, realised: Realised) -> None:
    """Put a fitted candidate in the place of its layer, found by its output's name."""
    layer = realised.candidate.layer.name
    node = next(n for n in scope.graph if n.outputs[0].name == layer)
    realised.propose(scope, node).apply()


def with_candidates(scope: Scope, chosen: Sequence[Realised]) -> ir.Model:
    """A clone of the scope's model with these candidates in place."""
    clone = scope.model.clone()
    forget_names(clone)
    copy = Scope(clone, clone.graph, scope.infos)
    for realised in chosen:
        place(copy, realised)
    return clone


def price(
    scope: Scope,
    layers: Collection[str],
    offered: Iterable[tuple[str, Sequence[Candidate]]],
    guard: Guard,
    timer: Timer | None,
    progress: Progress,
    notebook: Notebook | None = None,
    probes: int = PROBED,
) -> Prices:
    """Measure what is offered: latency of every candidate, output sensitivity of every layer.

    layers: names of those that something may be offered for; offered: what is, by such a name.
    A candidate that is not measurably faster than its layer is dropped, or whose response error is
    no number. The output error is measured end to end for a few candidates per layer (`probes`),
    the others' is interpolated. Where a timer that does not measure knows nothing, MACs stand in
    for time.
    """
    progress.stage("Pricing layers", len(layers))
    priced: list[Options] = []
    refused: list[Decline] = []
    nodes = {node.outputs[0].name: node for node in scope.graph if node.outputs[0].name in layers}
    shares = (
        {}
        if timer is None
        else timer.shares(scope, {layer: context_of(scope, nodes[layer]) for layer in layers})
    )
    whole_us = _usual([share.before_us for share in shares.values()])
    # Parts cannot take longer than the whole: what they do is the overhead of running them alone.
    total = max(1.0, sum(share.ratio for share in shares.values()))
    for layer, candidates in offered:
        node = nodes[layer]
        progress.step(node.name or layer)
        if not candidates:
            continue
        finite = [c for c in candidates if math.isfinite(c.error)]
        own = shares[layer].ratio / total * whole_us if whole_us and layer in shares else None
        timed = _timed(scope, node, finite, timer, own)
        faster = [item for item in timed if item[1] > 0]
        for name in sorted({c.rewrite for c in candidates} - {c.rewrite for c, _, _ in faster}):
            reason = "no candidate is measurably faster than the layer"
            refused.append(Decline(name, (node.name or layer,), reason))
        if faster:
            errors = _output_errors(scope, [c for c, _, _ in faster], guard, notebook, probes)
            if not errors:
                reason = "the outputs are not finite, or no longer zero, with a candidate in place"
                names = dict.fromkeys(candidate.rewrite for candidate, _, _ in faster)
                refused += [Decline(name, (node.name or layer,), reason) for name in names]
                continue
            weight = caution(node)
            choices = tuple(
                Choice(layer, c, saved, weight * errors[c], timing) for c, saved, timing in faster
            )
            for index, _ in hull([(choice.error**2, choice.saved_us) for choice in choices]):
                # Plans will ask for these weights; now the decompositions are still at hand.
                _ = choices[index].candidate.realised
            priced.append(Options(layer, choices))
    return Prices(tuple(priced), tuple(refused), whole_us)


def _timed(
    scope: Scope,
    node: ir.Node,
    candidates: Sequence[Candidate],
    timer: Timer | None,
    own_us: float | None,
) -> list[tuple[Candidate, float, Timing | None]]:
    """Every candidate of a layer with the microseconds it saves and the measurement that says so.

    A ratio comes from interleaved runs and holds on a busy machine; the time of the layer itself was
    measured once with every candidate and may have drifted in between. It is the same layer: all
    ratios are taken of one time, its share of the whole model's (own_us) or else the usual one.
    """
    timings = [
        None if timer is None else time_candidate(scope, node, candidate, timer)
        for candidate in candidates
    ]
    careful = None if timer is None else timer.careful
    if careful is not None:
        timings = _sharper(scope, node, candidates, timings, careful)
    layer_us = own_us or _usual([t.before_us for t in timings if t is not None]) or 0.0
    return [
        (candidate, *_saved(scope, node, candidate, timer, timing and timing.of(layer_us)))
        for candidate, timing in zip(candidates, timings, strict=True)
    ]


def _sharper(
    scope: Scope,
    node: ir.Node,
    candidates: Sequence[Candidate],
    timings: Sequence[Timing | None],
    timer: Stopwatch,
) -> list[Timing | None]:
    """The timings, with those taken again with more effort that make a candidate look best.

    The best of many short timings owes much to luck. So what is on the hull of saved time over
    squared error is timed again, until that does not put others there.
    """
    known, sure = list(timings), set[int]()
    while True:
        points = [
            (candidate.error**2, 0.0 if timing is None else 1 - timing.ratio)
            for candidate, timing in zip(candidates, known, strict=True)
        ]
        best = {index for index, _ in hull(points)} - sure
        if not best:
            return known
        for index in sorted(best):
            known[index] = time_candidate(scope, node, candidates[index], timer)
        sure |= best


def _usual(times: Sequence[float]) -> float | None:
    """What the same thing takes, of several times that other work on the machine added to."""
    return float(np.quantile(times, 0.25)) if times else None


def _saved(
    scope: Scope, node: ir.Node, candidate: Candidate, timer: Timer | None, timing: Timing | None
) -> tuple[float, Timing | None]:
    if timing is None and (timer is None or isinstance(timer, Recall)):
        return macs(node, scope.infos) * (1 - candidate.macs_ratio) / _MACS_PER_US, None
    if timing is None or timing.ratio_high >= 1:
        return 0.0, timing
    return timing.before_us * (1 - timing.ratio), timing if timing.measured else None


def time_candidate(
    scope: Scope, node: ir.Node, candidate: Candidate, timer: Timer
) -> Timing | None:
    """Time a layer against a candidate for it, both with the activation behind them.

    Nothing is fitted for it: the candidate is timed with random weights.
    """

    def rewrite(fragment: Scope) -> bool:
        place(fragment, candidate.sketch)
        return True

    return timer.rewritten(scope, context_of(scope, node), rewrite)


def context_of(scope: Scope, node: ir.Node) -> list[ir.Node]:
    """A layer with the activation that onnxruntime fuses into it."""
    after = follower(scope, node)
    return [node] if after is None or not is_op(after, *_ACTIVATIONS) else [node, after]


def error_alone(
    scope: Scope, candidate: Candidate, guard: Guard, notebook: Notebook | None
) -> float:
    """Output error on the fitting inputs with one candidate, fitted on its own, in place."""

    def measure() -> Figures:
        return (guard.fitting_error(with_candidates(scope, [candidate.realised])),)

    (error,) = noted(notebook, lambda: probe_key(candidate), measure)
    return math.inf if error is None else error


def _output_errors(
    scope: Scope,
    candidates: Sequence[Candidate],
    guard: Guard,
    notebook: Notebook | None,
    probes: int,
) -> dict[Candidate, float]:
    """Expected output error of every candidate of a layer.

    A few candidates between the best and the worst are measured end to end; the others are read off
    the (log-log) line between their neighbours in response error. The relation is far from
    proportional: behind a global pooling a coarse fit loses whole classes, a fine one only noise.
    Empty when a measured candidate spoils the outputs altogether.
    """
    ordered = sorted(candidates, key=lambda candidate: candidate.error)
    count = min(probes, len(ordered))
    picked = np.unique(np.linspace(0, len(ordered) - 1, count).round().astype(int))
    xs, ys = [], []
    for index in picked:
        probe = ordered[index]
        measured = error_alone(scope, probe, guard, notebook)
        if not math.isfinite(measured):
            return {}
        xs.append(log_error(probe.error))
        ys.append(log_error(measured))
    rising = np.maximum.accumulate(ys)
    return {
        candidate: float(np.exp(np.interp(log_error(candidate.error), xs, rising)))
        for candidate in ordered
    }
