"""Decompositions that are made when first asked for, and no larger than they will have to be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from graphopt.rewrites.approximate.layer import Layer
from graphopt.rewrites.approximate.scheme import Ranks
from graphopt.rewrites.approximate.structure import WORTHWHILE_MACS_RATIO, Row, cost

Fit = TypeVar("Fit")


@dataclass
class OnDemand(Generic[Fit]):
    """Fits (one a group) that answer up to a rank, from `make(rank)`.

    top: the largest rank on offer. Who asks for the price of a rank will ask for those of the others;
    who wants the weights of a rank and never asked for prices wants no others.
    """

    make: Callable[[int], list[Fit]]
    top: int
    _most: int = 0
    _made: list[Fit] = field(default_factory=list)

    def for_prices(self, rank: int) -> list[Fit]:
        """Fits that answer up to this rank and all that are on offer."""
        return self.for_weights(rank if rank <= self._most else max(rank, self.top))

    def for_weights(self, rank: int) -> list[Fit]:
        """Fits that answer up to this rank."""
        if rank > self._most:
            self._most, self._made = rank, self.make(rank)
        return self._made


def largest_worthwhile(
    layer: Layer, rows: Callable[[Ranks], tuple[Row, ...]], offered: Sequence[Ranks]
) -> int:
    """The largest first rank of those on offer that save multiplications; 1 if none does."""
    saving = [ranks[0] for ranks in offered if cost(layer, rows(ranks))[0] < WORTHWHILE_MACS_RATIO]
    return max(saving, default=1)
