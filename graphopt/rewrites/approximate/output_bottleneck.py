"""Let an expensive layer answer in fewer channels, and expand them afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.factorize.moments import Moments
from graphopt.factorize.reduced_rank import output_fit
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
class OutputBottleneck(Scheme):
    """Conv k x k (C -> O)  ==>  Conv k x k (C -> R), Conv 1x1 (R -> O); x W  ==>  (x A) B.

        W ~ U (U^T W),  U the leading eigenvectors of W G W^T

    For pointwise convolutions and fully connected layers this is the low-rank layer. Strides,
    dilations and pads go with the first stage, and the offsets and mask of a DeformConv. Zhang et al.
    2016, section 3.1.
    """

    name = "output-bottleneck"

    def applies(self, layer: Layer) -> str | None:
        """Any layer with more than one output a group."""
        if layer.outputs > 1:
            return None
        return f"1 output channel{' a group' if layer.group > 1 else ''}: nothing to gain"

    def decompose(
        self, layer: Layer, targets: Sequence[Array], moments: Sequence[Moments], block: int
    ) -> Decomposition:
        """All ranks from one eigendecomposition per group."""
        fits = [output_fit(t, m.gram) for t, m in zip(targets, moments, strict=True)]
        point = (1,) * len(layer.kernel)

        def rows(ranks: Ranks) -> tuple[Row, ...]:
            (rank,) = ranks
            first = StageShape(rank, layer.inputs, layer.kernel, all_of_it(layer))
            return ((first, StageShape(layer.outputs, rank, point, nothing(layer))),)

        def factors(ranks: Ranks) -> Factored:
            (rank,) = ranks
            parts = [fit.factors(rank) for fit in fits]
            return Factored(
                rows(ranks),
                (
                    (
                        tuple(a.reshape(rank, layer.inputs, *layer.kernel) for a, _ in parts),
                        tuple(b.reshape(layer.outputs, rank, *point) for _, b in parts),
                    ),
                ),
                lambda: tuple(b @ a for a, b in parts),
            )

        limit = min(layer.outputs, layer.inputs * layer.taps) - 1
        return Decomposition(
            offered=tuple((rank,) for rank in multiples(limit, block)),
            rows=rows,
            missed=lambda ranks: float(sum(fit.missed[ranks[0]] for fit in fits)),
            factors=factors,
        )
