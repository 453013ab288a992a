"""Which layers can be factored, and what is offered for each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graphopt.graph.scope import Scope, site_of
from graphopt.planning.workshop import Candidate, Workshop
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.scheme import Scheme
from graphopt.rewrites.base import Decline

_SLACK = 1.05
"""A candidate stays if nothing both has fewer MACs and is this much better: MACs are not time."""


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


def menus(layers: Sequence[Layer], schemes: Sequence[Scheme], workshop: Workshop) -> Iterator[Menu]:
    """Per layer the candidates on the Pareto front of MACs and error (with some slack).

    One after another as they are asked for: a layer's decompositions are large, and not kept for long.
    """
    for layer in layers:
        offered, declined = workshop.menu(layer, schemes)
        yield Menu(layer.name, tuple(front(offered)), tuple(declined))


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


def _why_none(layer: Layer, schemes: Sequence[Scheme]) -> str:
    """Why no scheme applies to a layer. That a pointwise one has no kernel goes without saying."""
    reasons = {scheme.name: scheme.applies(layer) or "" for scheme in schemes}
    if layer.taps == 1 and "output-bottleneck" in reasons:
        return reasons["output-bottleneck"]
    return "; ".join(dict.fromkeys(reasons.values()))


def _all(schemes: Sequence[Scheme]) -> str:
    return schemes[0].name if len(schemes) == 1 else "low-rank"
