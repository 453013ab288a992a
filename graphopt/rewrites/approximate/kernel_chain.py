"""Replace a large kernel by a chain of 3x3 ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from graphopt.factorize.kernel_chain import ChainFit, fit_chain
from graphopt.factorize.moments import Moments
from graphopt.rewrites.approximate.layer import Carries, Layer
from graphopt.rewrites.approximate.scheme import Array, Decomposition, Ranks, Scheme, everywhere
from graphopt.rewrites.approximate.structure import Factored, Row, StageShape

_THREE = (3, 3)
_PRICING_ROUNDS = 8
_FINAL_ROUNDS = 20
_FINAL_STEPS = 40


@dataclass(frozen=True)
class KernelChain(Scheme):
    """Conv 5x5 (C -> O)  ==>  Conv 3x3 (C -> M), Conv 3x3 (M -> O); 7x7  ==>  three 3x3.

        W[o, c, u] ~ sum_m sum_{i + j = u} B[o, m, j] A[m, c, i]

    All padding goes on the first convolution (with some on each, border pixels would differ),
    strides on the last, dilations on all, the bias on the last. M is a multiple of the channel
    block. Fitted by alternating least squares, L-BFGS in the metric of the inputs, and a regression
    of the last factor. Simonyan & Zisserman 2015; Szegedy et al. 2016, section 3.
    Declines for other kernels than 5x5 and 7x7, and for deformable convolutions.
    """

    shares: tuple[float, ...] = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2)
    name = "kernel-pair"
    rank_names = ("channels_between",)
    iterative = True

    def applies(self, layer: Layer) -> str | None:
        """5x5 and 7x7 convolutions."""
        if layer.transposed:
            return "a transposed convolution"
        if layer.deformable:
            return "deformable: its offsets move a whole kernel, not the factors of one"
        return None if layer.kernel in ((5, 5), (7, 7)) else "the kernel is not 5x5 or 7x7"

    def decompose(
        self, layer: Layer, targets: Sequence[Array], moments: Sequence[Moments], block: int
    ) -> Decomposition:
        """A few widths M between a quarter and 1.2 of the narrower side; one fit each."""
        cubes = [t.reshape(layer.outputs, layer.inputs, *layer.kernel) for t in targets]
        length = (layer.kernel[0] - 1) // 2

        @cache
        def fits(middle: int, final: bool) -> list[ChainFit]:
            rounds, steps = (_FINAL_ROUNDS, _FINAL_STEPS) if final else (_PRICING_ROUNDS, 0)
            return [
                fit_chain(cube, m.gram, middle, rounds=rounds, steps=steps)
                for cube, m in zip(cubes, moments, strict=True)
            ]

        def rows(ranks: Ranks) -> tuple[Row, ...]:
            (middle,) = ranks
            yes, no = everywhere(layer, True), everywhere(layer, False)
            stages = []
            for index in range(length):
                last = index == length - 1
                carries = Carries(strides=yes if last else no, pads=yes if index == 0 else no)
                stages.append(
                    StageShape(
                        layer.outputs if last else middle,
                        middle if index else layer.inputs,
                        _THREE,
                        carries,
                    )
                )
            return (tuple(stages),)

        def factors(ranks: Ranks) -> Factored:
            parts = fits(ranks[0], True)
            stages = tuple(tuple(p.factors[index] for p in parts) for index in range(length))

            def composite() -> tuple[Array, ...]:
                return tuple(p.composite.reshape(layer.outputs, -1) for p in parts)

            return Factored(rows(ranks), (stages,), composite)

        narrow = min(layer.inputs, layer.outputs)
        widths = {max(block, round(share * narrow / block) * block) for share in self.shares}
        return Decomposition(
            offered=tuple((middle,) for middle in sorted(widths)),
            rows=rows,
            missed=lambda ranks: sum(part.missed for part in fits(ranks[0], False)),
            factors=factors,
        )
