"""Split a k x k convolution into a column and a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from graphopt.factorize.leading import LeadingFactors, LeadingFit, mixing
from graphopt.factorize.moments import Moments
from graphopt.factorize.polish import polish_mixing
from graphopt.rewrites.approximate.layer import Carries, Layer
from graphopt.rewrites.approximate.on_demand import OnDemand, largest_worthwhile
from graphopt.rewrites.approximate.scheme import Array, Decomposition, Ranks, Scheme, multiples
from graphopt.rewrites.approximate.structure import Factored, Row, StageShape


@dataclass(frozen=True)
class Spatial(Scheme):
    """Conv kh x kw (C -> O)  ==>  Conv kh x 1 (C -> R), Conv 1 x kw (R -> O); or the transpose.

        W[o, c, i, j] ~ sum_r B[o, r, j] A[r, c, i]

    Strides, dilations and pads of an axis go with the stage that has the kernel along it, so
    borders are exact. Inception-v3's 7x7 -> 1x7, 7x1 (Szegedy et al. 2016); fitted as in Jaderberg
    et al. 2014, in the metric of the inputs. `first_axis` is the axis of the first stage's kernel.
    Declines for other than two spatial axes, for kernels that are 1 wide along one of them, and for
    deformable convolutions.
    """

    first_axis: int = 0

    @property
    def name(self) -> str:  # type: ignore[override]
        """spatial: column first; spatial-transposed: row first."""
        return "spatial" if self.first_axis == 0 else "spatial-transposed"

    def applies(self, layer: Layer) -> str | None:
        """Two-dimensional kernels, wider than one along both axes."""
        if layer.deformable:
            return "deformable: its offsets move a whole kernel, not the factors of one"
        if len(layer.kernel) != 2 or min(layer.kernel) == 1:
            return "the kernel is not wider than one along two axes"
        return None

    def decompose(
        self, layer: Layer, targets: Sequence[Array], moments: Sequence[Moments], block: int
    ) -> Decomposition:
        """All ranks from one decomposition per group."""
        a, b = self.first_axis, 1 - self.first_axis
        mine, other = layer.kernel[a], layer.kernel[b]
        rows_, columns = layer.kernel
        order = (0, 1, 2, 3) if a == 0 else (0, 1, 3, 2)

        def posed(target: Array, moment: Moments) -> tuple[Array, Array]:
            """Weight and metric with the first stage's kernel axis first. Not kept: may be copies."""
            cube = target.reshape(layer.outputs, layer.inputs, rows_, columns).transpose(order)
            gram = moment.gram.reshape((layer.inputs, rows_, columns) * 2)
            if a == 1:
                gram = gram.transpose(0, 2, 1, 3, 5, 4)
            size = layer.inputs * mine * other
            shape = (layer.outputs, layer.inputs * mine, other)
            return cube.reshape(shape), gram.reshape(size, size)

        first_kernel = tuple(layer.kernel[i] if i == a else 1 for i in (0, 1))
        second_kernel = tuple(layer.kernel[i] if i == b else 1 for i in (0, 1))
        first_axes = tuple(i == a for i in (0, 1))
        second_axes = tuple(i == b for i in (0, 1))

        def rows(ranks: Ranks) -> tuple[Row, ...]:
            (rank,) = ranks
            first = StageShape(rank, layer.inputs, first_kernel, Carries(first_axes, first_axes))
            second = StageShape(
                layer.outputs, rank, second_kernel, Carries(second_axes, second_axes)
            )
            return ((first, second),)

        def factored(ranks: Ranks, parts: Sequence[LeadingFactors]) -> Factored:
            (rank,) = ranks
            firsts = tuple(p.first.reshape(rank, layer.inputs, *first_kernel) for p in parts)
            seconds = tuple(p.second.reshape(layer.outputs, rank, *second_kernel) for p in parts)

            def composite() -> tuple[Array, ...]:
                return tuple(
                    np.einsum("ork,rj->ojk", p.second, p.first)
                    .reshape(layer.outputs, layer.inputs, mine, other)
                    .transpose(order)
                    .reshape(layer.outputs, -1)
                    for p in parts
                )

            return Factored(rows(ranks), ((firsts, seconds),), composite)

        def made(most: int) -> list[LeadingFit]:
            return [mixing(*posed(t, m), most) for t, m in zip(targets, moments, strict=True)]

        limit = min(layer.inputs * mine - 1, layer.outputs * other)
        offered = tuple((rank,) for rank in multiples(limit, block))
        fits = OnDemand(made, largest_worthwhile(layer, rows, offered))

        def polished(ranks: Ranks) -> Factored:
            found = [
                polish_mixing(fit, ranks[0], *posed(target, moment))
                for fit, target, moment in zip(
                    fits.for_weights(ranks[0]), targets, moments, strict=True
                )
            ]
            return factored(ranks, [p.factors for p in found])

        def plain(ranks: Ranks) -> Factored:
            (rank,) = ranks
            return factored(ranks, [fit.factors(rank) for fit in fits.for_weights(rank)])

        return Decomposition(
            offered=offered,
            rows=rows,
            missed=lambda ranks: float(
                sum(fit.missed[ranks[0]] for fit in fits.for_prices(ranks[0]))
            ),
            factors=plain,
            polished=polished,
        )
