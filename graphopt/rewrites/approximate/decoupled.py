"""Depthwise and pointwise convolutions in the place of a dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.factorize.leading import LeadingFactors, separate
from graphopt.factorize.moments import Moments
from graphopt.factorize.polish import polish_separate
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.on_demand import OnDemand, largest_worthwhile
from graphopt.rewrites.approximate.scheme import (
    Array,
    Decomposition,
    Ranks,
    Scheme,
    all_of_it,
    nothing,
)
from graphopt.rewrites.approximate.structure import Factored, Row, StageShape


@dataclass(frozen=True)
class Decoupled(Scheme):
    """Conv k x k (C -> O)  ==>  sum over T terms of depthwise k x k (C), Conv 1x1 (C -> O).

        W[o, c, u] ~ sum_t P_t[o, c] D_t[c, u]

    Written as T parallel rows: one depthwise convolution with a multiplier of T is several times
    slower on onnxruntime. Guo et al. 2018, "Network decoupling".
    Declines for 1x1 kernels.
    """

    most_terms: int = 4
    name = "decoupled"
    rank_names = ("terms",)

    def applies(self, layer: Layer) -> str | None:
        """Convolutions with a kernel larger than one."""
        if layer.transposed:
            return "transposed: its pointwise stages would run at the larger size"
        return "no kernel larger than 1x1 to decouple" if layer.taps == 1 else None

    def decompose(
        self,
        layer: Layer,
        targets: Sequence[Array],
        moments: Sequence[Moments],
        block: int,  # noqa: ARG002
    ) -> Decomposition:
        """All numbers of terms from one decomposition per group."""
        cube = (layer.outputs, layer.inputs, layer.taps)
        posed = [(t.reshape(cube), m.gram) for t, m in zip(targets, moments, strict=True)]
        point = (1,) * len(layer.kernel)
        depthwise = StageShape(
            layer.inputs, layer.inputs, layer.kernel, all_of_it(layer), group=layer.inputs
        )
        pointwise = StageShape(layer.outputs, layer.inputs, point, nothing(layer))

        def rows(ranks: Ranks) -> tuple[Row, ...]:
            return ((depthwise, pointwise),) * ranks[0]

        def factored(ranks: Ranks, parts: Sequence[LeadingFactors]) -> Factored:
            (terms,) = ranks
            weights = tuple(
                (
                    tuple(p.first[t].reshape(layer.inputs, 1, *layer.kernel) for p in parts),
                    tuple(p.second[:, t].reshape(*cube[:2], *point) for p in parts),
                )
                for t in range(terms)
            )

            def composite() -> tuple[Array, ...]:
                return tuple(
                    np.einsum("otj,tjk->ojk", p.second, p.first).reshape(layer.outputs, -1)
                    for p in parts
                )

            return Factored(rows(ranks), weights, composite)

        offered = tuple((t,) for t in range(1, min(self.most_terms, layer.taps - 1) + 1))
        fits = OnDemand(
            lambda most: [separate(*problem, most) for problem in posed],
            largest_worthwhile(layer, rows, offered),
        )

        def polished(ranks: Ranks) -> Factored:
            found = [
                polish_separate(fit, ranks[0], *problem)
                for fit, problem in zip(fits.for_weights(ranks[0]), posed, strict=True)
            ]
            return factored(ranks, [p.factors for p in found])

        def plain(ranks: Ranks) -> Factored:
            (terms,) = ranks
            return factored(ranks, [fit.factors(terms) for fit in fits.for_weights(terms)])

        return Decomposition(
            offered=offered,
            rows=rows,
            missed=lambda ranks: float(
                sum(fit.missed[ranks[0]] for fit in fits.for_prices(ranks[0]))
            ),
            factors=plain,
            polished=polished,
        )
