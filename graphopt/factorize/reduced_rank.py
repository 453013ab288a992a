"""Schemes that act on the output: reduced-rank regression, alone or behind an input basis.

The response covariance W G W^T has the directions in which a layer answers; keeping its R leading
eigenvectors U gives W~ = U U^T W, the best approximation of rank R in the metric of the inputs.
Source: Izenman 1975, "Reduced-rank regression for the multivariate linear model".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from graphopt.factorize.leading import LeadingFit

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OutputFit:
    """All ranks of the output scheme. directions: [O, O] columns by importance; missed: [O + 1].

    missed: squared response error left at rank 0, 1, 2, ... weight: [O, D], what is approximated.
    """

    directions: Array
    missed: Array
    weight: Array

    def factors(self, rank: int) -> tuple[Array, Array]:
        """reduce [R, D] (the first, large factor) and expand [O, R] (the pointwise one)."""
        kept = self.directions[:, :rank]
        return kept.T @ self.weight, kept


def output_fit(weight: Array, gram: Array) -> OutputFit:
    """Factor W [O, D] as U (U^T W) in the metric G [D, D]."""
    directions, missed = _directions((weight @ gram) @ weight.T)
    return OutputFit(directions, missed, np.asarray(weight, np.float64))


@dataclass(frozen=True)
class TwoSidedFit:
    """All output ranks behind the leading `inner` input directions.

    missed: [O + 1] squared error in all (input side included). core: [O, inner, K]; basis [inner, J].
    Source: Kim et al. 2016, "Compression of deep CNNs" (Tucker-2), in the metric of the inputs.
    """

    basis: Array
    core: Array
    directions: Array
    missed: Array

    def factors(self, rank: int) -> tuple[Array, Array, Array]:
        """reduce [R1, J], core [R2, R1, K], expand [O, R2]."""
        kept = self.directions[:, :rank]
        return self.basis, np.tensordot(kept.T, self.core, axes=1), kept


def two_sided(fit: LeadingFit, inner: int) -> TwoSidedFit:
    """Two-sided fits for one input rank, from the input side's decomposition."""
    kept = fit.response[:, : inner * fit.step]
    directions, missed = _directions(kept @ kept.T)
    factors = fit.factors(inner)
    return TwoSidedFit(factors.first, factors.second, directions, missed + fit.missed[inner])


def _directions(covariance: Array) -> tuple[Array, Array]:
    values, vectors = scipy.linalg.eigh((covariance + covariance.T) / 2, check_finite=False)
    energy = np.maximum(values[::-1], 0.0)
    missed = np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])
    return vectors[:, ::-1], missed
