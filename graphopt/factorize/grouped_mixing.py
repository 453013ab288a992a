"""The mixing scheme where channels must not mix across groups: a grouped pointwise convolution.

For W [O, J, K] with J in `parts` equal parts d, W ~ sum_r B[o, (d, r), k] A_d[r, c]: every part has
a first factor of its own, of the same rank. In coordinates z_d = T_d x_d, T_d from `mixing` of the
part alone, every part has unit moments and its directions in the order of their importance. Read
as a weight over r alone, with (d, k) for taps, that is a `mixing` problem again: its first factor,
shared by the parts, is then (nearly) the identity, and its regression sees how the parts vary together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from graphopt.factorize.leading import LeadingFit, mixing

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class GroupedFit:
    """All ranks (per part) at once.

    fit: of `weight` [O, J / parts, parts * K] in the metric `gram`, both in the coordinates T_d of
    `bases` [parts, J / parts, J / parts]; with one part those are the inputs as they are (None).
    """

    fit: LeadingFit
    weight: Array
    gram: Array
    bases: Array | None = None

    @property
    def parts(self) -> int:
        """How many parts the inputs have."""
        return 1 if self.bases is None else len(self.bases)

    def first(self, shared: Array) -> Array:
        """First factors [parts * R, J / parts], part after part, of a fit's own [R, J / parts]."""
        if self.bases is None:
            return shared
        return np.concatenate([shared @ basis for basis in self.bases])

    def second(self, shared: Array) -> Array:
        """Second factor [O, parts * R, K] of a fit's own [O, R, parts * K]."""
        if self.bases is None:
            return shared
        outputs, rank, _ = shared.shape
        cube: Array = shared.reshape(outputs, rank, self.parts, -1).transpose(0, 2, 1, 3)
        return cube.reshape(outputs, self.parts * rank, -1)


def grouped_mixing(weight: Array, gram: Array, parts: int, most: int | None = None) -> GroupedFit:
    """Factor W [O, J, K] in the metric G [J K, J K] of (j, k), a rank of every part of J at a time.

    most: the largest rank of a part that will be asked for (None: J / parts).
    """
    if parts == 1:
        return GroupedFit(mixing(weight, gram, most), weight, gram)
    outputs, size, taps = weight.shape
    width = size // parts
    split = weight.reshape(outputs, parts, width, taps)
    metric = gram.reshape(parts, width, taps, parts, width, taps)
    own = width * taps
    bases = np.stack(
        [mixing(split[:, d], metric[d, :, :, d].reshape(own, own), 1).basis for d in range(parts)]
    )
    inverses = np.stack([scipy.linalg.inv(basis, check_finite=False) for basis in bases])
    moved = np.einsum("drc,dckeil->drkeil", bases, metric, optimize=True)
    moved = np.einsum("drkeil,esi->rdksel", moved, bases, optimize=True)
    seen = np.einsum("odck,dcr->ordk", split, inverses, optimize=True)
    weight = seen.reshape(outputs, width, parts * taps)
    gram = moved.reshape(size * taps, size * taps)
    return GroupedFit(mixing(weight, gram, most), weight, gram, bases)


def multiplied(first: Array, second: Array, parts: int = 1) -> Array:
    """The weight [O, J, K] of factors [parts * R, J / parts] and [O, parts * R, K]."""
    outputs, rows, taps = second.shape
    width = first.shape[1]
    mixed: Array = np.einsum(
        "odrk,drc->odck",
        second.reshape(outputs, parts, rows // parts, taps),
        first.reshape(parts, rows // parts, width),
        optimize=True,
    )
    return mixed.reshape(outputs, parts * width, taps)
