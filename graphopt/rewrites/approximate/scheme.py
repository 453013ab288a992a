"""The interface that all low-rank schemes share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphopt.factorize.moments import Moments
from graphopt.rewrites.approximate.layer import Carries, Layer
from graphopt.rewrites.approximate.structure import Factored, Row
from graphopt.rewrites.base import ApproximateRewrite

Array = np.ndarray[Any, Any]
Ranks = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Decomposition:
    """One scheme's answer for one layer in one metric.

    offered: the ranks worth considering. rows: the shapes at a rank. missed: squared response error
    at a rank, summed over outputs and groups. factors: the weights at a rank. polished: better weights
    for more time, where `factors` is no optimum; for the plan that was chosen.
    """

    offered: tuple[Ranks, ...]
    rows: Callable[[Ranks], tuple[Row, ...]]
    missed: Callable[[Ranks], float]
    factors: Callable[[Ranks], Factored]
    polished: Callable[[Ranks], Factored] | None = None

    def weights(self, ranks: Ranks, polish: bool) -> Factored:
        """The weights at a rank, polished if they are to be and can be."""
        if polish and self.polished is not None:
            return self.polished(ranks)
        return self.factors(ranks)


class Scheme(ApproximateRewrite):
    """A family of cheaper structures for a layer, indexed by ranks."""

    rank_names: ClassVar[tuple[str, ...]] = ("rank",)
    iterative: ClassVar[bool] = False
    """Whether every rank is a fit of its own (no decomposition prices them all)."""

    mixes_outputs: ClassVar[bool] = True
    """Whether its last stage can take in a matrix over the outputs, and so a metric of them."""

    @abstractmethod
    def applies(self, layer: Layer) -> str | None:
        """None if the scheme makes sense for a layer of this shape, else why it does not."""

    @abstractmethod
    def decompose(
        self, layer: Layer, targets: Sequence[Array], moments: Sequence[Moments], block: int
    ) -> Decomposition:
        """Decompose the target weights [O, C * taps] of every group in the metric of its input.

        block: ranks offered are multiples of it (onnxruntime pays them rounded up).
        """


def multiples(limit: int, block: int, most: int = 16) -> tuple[int, ...]:
    """Multiples of the channel block below or at `limit`, thinned out evenly to `most`."""
    ranks = np.arange(block, limit + 1, block)
    if len(ranks) > most:
        ranks = ranks[np.unique(np.linspace(0, len(ranks) - 1, most).round().astype(int))]
    return tuple(int(rank) for rank in ranks)


def everywhere(layer: Layer, value: bool) -> tuple[bool, ...]:
    """The same answer for every spatial axis."""
    return (value,) * len(layer.kernel)


def all_of_it(layer: Layer) -> Carries:
    """A stage that carries all strides and pads of the layer."""
    return Carries(everywhere(layer, True), everywhere(layer, True))


def nothing(layer: Layer) -> Carries:
    """A pointwise stage: no strides, no pads."""
    return Carries(everywhere(layer, False), everywhere(layer, False))
