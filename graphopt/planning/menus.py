"""Which layers can be factored, and what is offered for each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.graph.scope import Scope, site_of
from graphopt.planning.workshop import Candidate, Workshop
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.scheme import Scheme
from graphopt.rewrites.base import Decline

_SLACK = 1.05
"""A candidate stays if nothing both has fewer MACs and is this much better: MACs are not time."""

_TINY = 1e-9
"""Errors below are as good as none; and none has no logarithm."""


@dataclass(frozen=True)
class Menu:
    """What is on offer for the layer of a name, cheapest first, and what is not and why."""

    layer: str
    candidates: tuple[Candidate, ...]
    declined: tuple[Decline, ...]


def layers_of(scope: Scope, schemes: Sequence[Scheme]) -> tuple[list[Layer], list[Decline]]:
    """The layers of the main graph to which some scheme applies, in topological order."""
    layers: list[Layer] = []
    declined: list[Decline] = []
    for node in scope.graph:
        layer = Layer.of(node, scope)
        if layer is None:
            continue
        if isinstance(layer, str):
            declined.append(Decline(_all(schemes), site_of(node), layer))
        elif any(scheme.applies(layer) is None for scheme in schemes):
            layers.append(layer)
        else:
            declined.append(Decline(_all(schemes), site_of(node), _why_none(layer, schemes)))
    return layers, declined


def menus(
    layers: Sequence[Layer], schemes: Sequence[Scheme], workshop: Workshop, most: int | None = None
) -> Iterator[Menu]:
    """Per layer the candidates on the Pareto front of MACs and error (with some slack).

    One after another as they are asked for: a layer's decompositions are large, and not kept for
    long. most: candidates of a layer; None for all of these.
    """
    for layer in layers:
        offered, declined = workshop.menu(layer, schemes)
        kept = front(offered)
        if most is not None:
            kept = thinned(kept, most)
        yield Menu(layer.name, tuple(kept), tuple(declined))


def front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Drop what another candidate beats clearly in both MACs and error; cheapest first."""
    kept = []
    for one in candidates:
        beaten = any(
            other.macs_ratio <= one.macs_ratio and other.error * _SLACK < one.error
            for other in candidates
        )
        if not beaten:
            kept.append(one)
    return sorted(kept, key=lambda candidate: (candidate.macs_ratio, candidate.error))


def log_error(error: float) -> float:
    """Natural logarithm of an error, of which only the order of magnitude counts."""
    return math.log(max(error, _TINY))


def thinned(candidates: Sequence[Candidate], most: int) -> list[Candidate]:
    """About evenly spaced in error, of those nearly alike in it the one of fewest MACs."""
    finite = [c for c in candidates if math.isfinite(c.error)]
    if len(finite) <= most:
        return finite
    errors = np.array([log_error(c.error) for c in finite])
    edges = np.linspace(errors.min(), errors.max(), most + 1)[1:-1]
    best: dict[int, int] = {}
    for index, place in enumerate(np.searchsorted(edges, errors).tolist()):
        known = best.get(place)
        if known is None or finite[index].macs_ratio < finite[known].macs_ratio:
            best[place] = index
    return [finite[index] for index in sorted(best.values())]


def _why_none(layer: Layer, schemes: Sequence[Scheme]) -> str:
    """Why no scheme applies to a layer. That a pointwise one has no kernel goes without saying."""
    reasons = {scheme.name: scheme.applies(layer) or "" for scheme in schemes}
    if layer.taps == 1 and "output-bottleneck" in reasons:
        return reasons["output-bottleneck"]
    return "; ".join(dict.fromkeys(reasons.values()))


def _all(schemes: Sequence[Scheme]) -> str:
    return schemes[0].name if len(schemes) == 1 else "low-rank"
