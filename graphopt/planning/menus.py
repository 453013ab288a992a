"""Which layers can be factored, and what is offered for each."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.graph.scope import Scope, site_of
from graphopt.planning.workshop import Candidate, Workshop
from graphopt.progress import Progress
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.scheme import Scheme
from graphopt.rewrites.base import Decline

_SLACK = 1.05
"""A candidate stays if nothing both has fewer MACs and is this much better: MACs are not time."""


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
    layers: Sequence[Layer], schemes: Sequence[Scheme], workshop: Workshop, progress: Progress
) -> tuple[dict[str, list[Candidate]], list[Decline]]:
    """Per layer name the candidates on the Pareto front of MACs and error (with some slack)."""
    progress.stage("Factorizing", len(layers))
    found: dict[str, list[Candidate]] = {}
    declined: list[Decline] = []
    for layer in layers:
        offered, refused = workshop.menu(layer, schemes)
        declined += refused
        if offered:
            found[layer.name] = front(offered)
        progress.step(layer.node.name or layer.name)
    return found, declined


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
