"""1x1 bottlenecks on both sides of an expensive convolution (Tucker-2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from graphopt.factorize.grouped_mixing import multiplied
from graphopt.factorize.moments import Moments
from graphopt.factorize.reduced_rank import TwoSidedFit, two_sided
from graphopt.rewrites.approximate.input_bottleneck import input_fits, input_ranks, mixes
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.on_demand import largest_worthwhile
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
class TwoSided(Scheme):
    """Conv k x k (C -> O)  ==>  Conv 1x1 (C -> R1), Conv k x k (R1 -> R2), Conv 1x1 (R2 -> O).

        W[o, c, u] ~ sum_rs U[o, s] K[s, r, u] A[r, c]

    Strides, dilations and pads stay on the k x k convolution. Kim et al. 2016.
    Declines for 1x1 kernels, and for a DeformConv where `input-bottleneck` does.
    """

    name = "two-sided"
    rank_names = ("rank_in", "rank_out")

    def applies(self, layer: Layer) -> str | None:
        """Convolutions with a kernel larger than one."""
        if layer.taps == 1:
            return "no kernel larger than 1x1 to put between the bottlenecks"
        return mixes(layer)

    def decompose(
        self, layer: Layer, targets: Sequence[Array], moments: Sequence[Moments], block: int
    ) -> Decomposition:
        """Input ranks from one decomposition, output ranks from one eigenproblem each."""
        point = (1,) * len(layer.kernel)

        def rows(ranks: Ranks) -> tuple[Row, ...]:
            inner, outer = ranks
            return (
                (
                    StageShape(inner, layer.inputs, point, nothing(layer), group=layer.apart),
                    StageShape(outer, inner, layer.kernel, all_of_it(layer)),
                    StageShape(layer.outputs, outer, point, nothing(layer)),
                ),
            )

        inner_ranks = input_ranks(layer, block, most=8)
        outer_ranks = multiples(layer.outputs - 1, block, most=8)
        offered = tuple((i, o) for i in inner_ranks for o in outer_ranks)
        bases = input_fits(layer, targets, moments, largest_worthwhile(layer, rows, offered))

        @cache
        def fits(inner: int) -> list[TwoSidedFit]:
            each = inner // layer.apart
            return [two_sided(base.fit, each) for base in bases.for_weights(inner)]

        def missed(ranks: Ranks) -> float:
            bases.for_prices(ranks[0])
            return float(sum(fit.missed[ranks[1]] for fit in fits(ranks[0])))

        def factors(ranks: Ranks) -> Factored:
            inner, outer = ranks
            parts = [
                (base.first(a), base.second(k), u)
                for base, fit in zip(bases.for_weights(inner), fits(inner), strict=True)
                for a, k, u in [fit.factors(outer)]
            ]
            return Factored(
                rows(ranks),
                (
                    (
                        tuple(a.reshape(*a.shape, *point) for a, _, _ in parts),
                        tuple(k.reshape(outer, inner, *layer.kernel) for _, k, _ in parts),
                        tuple(u.reshape(layer.outputs, outer, *point) for _, _, u in parts),
                    ),
                ),
                lambda: tuple(
                    u @ multiplied(a, k, layer.apart).reshape(outer, -1) for a, k, u in parts
                ),
            )

        return Decomposition(offered=offered, rows=rows, missed=missed, factors=factors)
