"""Input bottleneck: a k x k convolution as 1x1 (C -> R), then k x k (R -> O).

With M the [C, O k k] unfolding of the weight and M = U S V^T its singular value decomposition, the
best rank-R factors in the Frobenius norm are U_R and S_R V_R^T (Eckart & Young 1936). One
decomposition gives every rank. The scheme is the reducer of GoogLeNet's modules (Szegedy et al.
2015), fitted as in Denton et al. 2014.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg

from graphopt.factorize.unfold import fold_inputs, unfold_inputs

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class InputBottleneckFactors:
    """reduce: [R, C, 1...] pointwise factor; expand: [O, R, *kernel]. Both float64."""

    reduce: Array
    expand: Array


@dataclass(frozen=True)
class InputSpectrum:
    """The singular value decomposition of a weight's input unfolding, all ranks at once.

    left: [C, K] orthonormal; values: [K] descending; right: [K, O * prod(kernel)]; K = min(sizes).
    """

    left: Array
    values: Array
    right: Array
    out_channels: int
    kernel: tuple[int, ...]

    @classmethod
    def of(cls, weight: Array) -> InputSpectrum:
        """Decompose a weight [O, C, *kernel].

        Raises:
            ValueError: The weight is not finite.
        """
        left, values, right = scipy.linalg.svd(unfold_inputs(weight), full_matrices=False)
        return cls(left, values, right, weight.shape[0], tuple(weight.shape[2:]))

    def error(self, rank: int) -> float:
        """Relative Frobenius error of the best approximation of this rank."""
        energy = self.values**2
        total = float(energy.sum())
        return float(np.sqrt(energy[rank:].sum() / total)) if total else 0.0

    def factors(self, rank: int) -> InputBottleneckFactors:
        """The factors of this rank; the singular values are split evenly between them.

        A rank beyond K gives K: more channels would carry zeros.
        """
        root = np.sqrt(self.values[:rank])
        reduce = (self.left[:, :rank] * root).T
        expand = fold_inputs(root[:, None] * self.right[:rank], self.out_channels, self.kernel)
        pointwise = (1,) * len(self.kernel)
        return InputBottleneckFactors(reduce.reshape(*reduce.shape, *pointwise), expand)


def spectrum_values(weight: Array) -> Array:
    """Only the singular values [min(C, O k k)] of the input unfolding, descending.

    From the eigenvalues of the [C, C] Gram matrix: much cheaper, and exact to about 1e-8 of the
    largest, which is enough to price ranks.
    """
    matrix = unfold_inputs(weight)
    eigenvalues = scipy.linalg.eigvalsh(matrix @ matrix.T)
    values: Array = np.sqrt(np.maximum(eigenvalues[::-1], 0.0))
    return values


def tail_error(values: Array, rank: int) -> float:
    """Relative Frobenius error of truncating singular values [K] to a rank."""
    energy = np.asarray(values, np.float64) ** 2
    total = float(energy.sum())
    return float(np.sqrt(energy[rank:].sum() / total)) if total else 0.0
