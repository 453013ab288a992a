"""Pointwise and depthwise convolutions, in this order, in the place of a dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphopt.factorize.by_output import ByOutput, by_output
from graphopt.factorize.moments import Moments
from graphopt.rewrites.approximate.layer import Layer
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
class DecoupledPointwiseFirst(Scheme):
    """Conv k x k (C -> O)  ==>  sum over T terms of Conv 1x1 (C -> O), depthwise k x k (O).

        W[o, c, u] ~ sum_t D_t[o, u] P_t[o, c]

    The other order of `decoupled`, with the kernels on the side of the outputs: fewer of them where
    O < C, more MACs before strides. Strides, dilations and pads go with the depthwise stage; the
    pointwise one has no bias, so borders are exact. Every output is fitted on its own, whatever the
    metric of the outputs is.
    Guo et al. 2018, "Network decoupling" (PD, where `decoupled` is DP).
    Declines for 1x1 kernels, transposed convolutions, and a DeformConv whose inputs are not all
    sampled at the same positions (mixing them first would not commute).
    """

    most_terms: int = 4
    name = "decoupled-pointwise-first"
    rank_names = ("terms",)
    mixes_outputs = False

    def applies(self, layer: Layer) -> str | None:
        """Convolutions with a kernel larger than one."""
        if layer.transposed:
            return "transposed: a depthwise transposed convolution is computed slowly"
        if layer.apart != 1:
            return "deformable, with inputs that are sampled at different positions"
        return "no kernel larger than 1x1 to decouple" if layer.taps == 1 else None

    def decompose(
        self,
        layer: Layer,
        targets: Sequence[Array],
        moments: Sequence[Moments],
        block: int,  # noqa: ARG002
    ) -> Decomposition:
        """All numbers of terms from one decomposition per output."""
        cube = (layer.outputs, layer.inputs, layer.taps)
        most = min(self.most_terms, layer.taps - 1, layer.inputs)
        fits = [
            by_output(t.reshape(cube), m.gram, most) for t, m in zip(targets, moments, strict=True)
        ]
        point = (1,) * len(layer.kernel)
        pointwise = StageShape(layer.outputs, layer.inputs, point, nothing(layer))
        depthwise = StageShape(
            layer.outputs, layer.outputs, layer.kernel, all_of_it(layer), group=layer.outputs
        )

        def rows(ranks: Ranks) -> tuple[Row, ...]:
            return ((pointwise, depthwise),) * ranks[0]

        def factored(ranks: Ranks, parts: Sequence[ByOutput]) -> Factored:
            weights = tuple(
                (
                    tuple(p.first[:, t].reshape(*cube[:2], *point) for p in parts),
                    tuple(p.second[:, t].reshape(layer.outputs, 1, *layer.kernel) for p in parts),
                )
                for t in range(ranks[0])
            )

            def composite() -> tuple[Array, ...]:
                return tuple(p.composite.reshape(layer.outputs, -1) for p in parts)

            return Factored(rows(ranks), weights, composite)

        return Decomposition(
            offered=tuple((t,) for t in range(1, most + 1)),
            rows=rows,
            missed=lambda ranks: sum(fit.factors(ranks[0]).missed for fit in fits),
            factors=lambda ranks: factored(ranks, [fit.factors(ranks[0]) for fit in fits]),
            polished=lambda ranks: factored(ranks, [fit.polished(ranks[0]) for fit in fits]),
        )
