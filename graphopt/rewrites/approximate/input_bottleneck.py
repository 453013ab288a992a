"""Insert a 1x1 bottleneck before an expensive convolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

from graphopt.factorize.grouped_mixing import GroupedFit, grouped_mixing, multiplied
from graphopt.factorize.leading import LeadingFactors
from graphopt.factorize.moments import Moments
from graphopt.factorize.polish import polish_mixing
from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.on_demand import OnDemand, largest_worthwhile
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
    convolution, so borders are exact. Grouped convolutions are factored per group. What a DeformConv
    samples together is mixed before it, which commutes: per offset group, and not where groups and
    offset groups overlap in part.
    Declines for 1x1 kernels.
    """

    name = "input-bottleneck"

    def applies(self, layer: Layer) -> str | None:
        """Convolutions with a kernel larger than one."""
        if layer.taps == 1:
            return "no kernel larger than 1x1 to put behind the bottleneck"
        return mixes(layer)

    def decompose(
        self, layer: Layer, targets: Sequence[Array], moments: Sequence[Moments], block: int
    ) -> Decomposition:
        """All ranks from one decomposition per group."""

        def rows(ranks: Ranks) -> tuple[Row, ...]:
            (rank,) = ranks
            point = (1,) * len(layer.kernel)
            first = StageShape(rank, layer.inputs, point, nothing(layer), group=layer.apart)
            return ((first, StageShape(layer.outputs, rank, layer.kernel, all_of_it(layer))),)

        offered = tuple((rank,) for rank in input_ranks(layer, block))
        fits = input_fits(layer, targets, moments, largest_worthwhile(layer, rows, offered))

        def factored(
            ranks: Ranks, made: Sequence[GroupedFit], parts: Sequence[LeadingFactors]
        ) -> Factored:
            point = (1,) * len(layer.kernel)
            firsts = [one.first(p.first) for one, p in zip(made, parts, strict=True)]
            seconds = [one.second(p.second) for one, p in zip(made, parts, strict=True)]
            return Factored(
                rows(ranks),
                (
                    (
                        tuple(a.reshape(*a.shape, *point) for a in firsts),
                        tuple(b.reshape(*b.shape[:2], *layer.kernel) for b in seconds),
                    ),
                ),
                lambda: tuple(
                    multiplied(a, b, layer.apart).reshape(layer.outputs, -1)
                    for a, b in zip(firsts, seconds, strict=True)
                ),
            )

        def polished(ranks: Ranks) -> Factored:
            each = ranks[0] // layer.apart
            made = fits.for_weights(ranks[0])
            found = [polish_mixing(one.fit, each, one.weight, one.gram) for one in made]
            return factored(ranks, made, [p.factors for p in found])

        def plain(ranks: Ranks) -> Factored:
            made = fits.for_weights(ranks[0])
            return factored(ranks, made, [one.fit.factors(ranks[0] // layer.apart) for one in made])

        return Decomposition(
            offered=offered,
            rows=rows,
            missed=lambda ranks: float(
                sum(one.fit.missed[ranks[0] // layer.apart] for one in fits.for_prices(ranks[0]))
            ),
            factors=plain,
            polished=polished,
        )


def input_fits(
    layer: Layer, targets: Sequence[Array], moments: Sequence[Moments], top: int
) -> OnDemand[GroupedFit]:
    """Decompositions of the input side, one a group. top: the largest rank on offer."""
    cube = (layer.outputs, layer.inputs, layer.taps)

    def made(most: int) -> list[GroupedFit]:
        each = most // layer.apart
        return [
            grouped_mixing(t.reshape(cube), m.gram, layer.apart, each)
            for t, m in zip(targets, moments, strict=True)
        ]

    return OnDemand(made, top)


def mixes(layer: Layer) -> str | None:
    """None if a pointwise convolution before a layer may mix its inputs, else why not."""
    if layer.apart == 0:
        return "deformable, and its groups overlap with parts of its offset groups"
    if layer.apart == layer.inputs > 1:
        return "deformable: every input channel is sampled at positions of its own"
    return None


def input_ranks(layer: Layer, block: int, most: int = 16) -> tuple[int, ...]:
    """Ranks worth considering for a bottleneck before a layer, the same for all parts of a group."""
    limit = min(layer.inputs - layer.apart, layer.apart * layer.outputs * layer.taps)
    return multiples(limit, lcm(block, layer.apart), most)
