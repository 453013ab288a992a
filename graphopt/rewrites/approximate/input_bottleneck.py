"""Insert a 1x1 bottleneck before an expensive convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.factorize.leading import LeadingFactors, mixing
from graphopt.factorize.moments import Moments
from graphopt.factorize.polish import polish_mixing
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.scheme import (
    Array,
    Decomposition,
    Ranks,
    Scheme,
    all_of_it,
    multiples,
    nothing,
)
from graphopt.rewrites.approximate.structure import Factored, Row, StageShape


@dataclass(frozen=True)
class InputBottleneck(Scheme):
    """Conv k x k (C -> O)  ==>  Conv 1x1 (C -> R), Conv k x k (R -> O).

        W[o, c, u] ~ sum_r B[o, r, u] A[r, c]

    GoogLeNet's reducer (Szegedy et al. 2015). Strides, dilations and pads stay on the k x k
    convolution, so borders are exact. Grouped convolutions are factored per group.
    Declines for 1x1 kernels.
    """

    name = "input-bottleneck"

    def applies(self, layer: Layer) -> str | None:
        """Convolutions with a kernel larger than one."""
        if layer.taps == 1:
            return "no kernel larger than 1x1 to put behind the bottleneck"
        return None

    def decompose(
        self, layer: Layer, targets: Sequence[Array], moments: Sequence[Moments], block: int
    ) -> Decomposition:
        """All ranks from one decomposition per group."""
        cube = (layer.outputs, layer.inputs, layer.taps)
        posed = [(t.reshape(cube), m.gram) for t, m in zip(targets, moments, strict=True)]
        fits = [mixing(*problem) for problem in posed]

        def rows(ranks: Ranks) -> tuple[Row, ...]:
            (rank,) = ranks
            point = (1,) * len(layer.kernel)
            first = StageShape(rank, layer.inputs, point, nothing(layer))
            return ((first, StageShape(layer.outputs, rank, layer.kernel, all_of_it(layer))),)

        def factored(ranks: Ranks, parts: Sequence[LeadingFactors]) -> Factored:
            point = (1,) * len(layer.kernel)
            return Factored(
                rows(ranks),
                (
                    (
                        tuple(p.first.reshape(*p.first.shape, *point) for p in parts),
                        tuple(p.second.reshape(*p.second.shape[:2], *layer.kernel) for p in parts),
                    ),
                ),
                tuple(
                    np.einsum("ork,rj->ojk", p.second, p.first).reshape(layer.outputs, -1)
                    for p in parts
                ),
            )

        def polished(ranks: Ranks) -> Factored:
            found = [
                polish_mixing(fit, ranks[0], *problem)
                for fit, problem in zip(fits, posed, strict=True)
            ]
            return factored(ranks, [p.factors for p in found])

        return Decomposition(
            offered=tuple(
                (rank,)
                for rank in multiples(min(layer.inputs - 1, layer.outputs * layer.taps), block)
            ),
            rows=rows,
            missed=lambda ranks: float(sum(fit.missed[ranks[0]] for fit in fits)),
            factors=lambda ranks: factored(ranks, [fit.factors(ranks[0]) for fit in fits]),
            polished=polished,
        )
