"""Second moments of what a layer sees and of what it should answer: all a closed-form fit needs.

x [D] is an unfolded input patch (D = C * prod(kernel), channel-major like the weight's rows), y [O]
the response wanted for it. Moments are centred; the bias follows from the means.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy

Array = np.ndarray[Any, Any]

_RIDGE = 1e-3
"""Share of the mean diagonal added when the response is regressed on the input."""


@dataclass(frozen=True)
class Moments:
    """Moments of patches x and responses y, float64.

    gram: [D, D] = E[(x - mx)(x - mx)^T]. cross: [O, D] = E[(y - my)(x - mx)^T]. energy: [O] =
    E[(y - my)^2]. mean_input: [D]. mean_output: [O]. samples: independent inputs (images) behind
    them, 0 for the identity metric of a fit to the weights alone.
    """

    gram: Array
    cross: Array
    energy: Array
    mean_input: Array
    mean_output: Array
    samples: int

    @classmethod
    def of_weight(cls, matrix: Array, bias: Array | None = None) -> Moments:
        """The metric in which a fit to data is a fit to the weight [O, D] alone."""
        weight = np.asarray(matrix, np.float64)
        outputs, size = weight.shape
        return cls(
            gram=np.eye(size),
            cross=weight,
            energy=(weight**2).sum(axis=1),
            mean_input=np.zeros(size),
            mean_output=np.zeros(outputs) if bias is None else np.asarray(bias, np.float64),
            samples=0,
        )

    def error(self, matrix: Array) -> float:
        """Relative response error of a weight [O, D] with its best bias: sqrt(E|y - y~|^2 / E|y|^2).

        E|y - my|^2 in the denominator: a constant answer costs 1.
        """
        total = float(self.energy.sum())
        if total <= 0:
            return 0.0
        quadratic = float(np.sum((matrix @ self.gram) * matrix))
        missed = total - 2 * float(np.sum(matrix * self.cross)) + quadratic
        return float(np.sqrt(max(missed, 0.0) / total))

    def bias(self, matrix: Array) -> Array:
        """The best bias [O] for a weight [O, D]: it makes the mean response right."""
        best: Array = self.mean_output - matrix @ self.mean_input
        return best

    def unweighted(self) -> Moments:
        """With all inputs of equal weight: a fit to the weight alone, but for the bias."""
        scale = float(np.trace(self.gram)) / max(len(self.gram), 1)
        return replace(self, gram=scale * np.eye(len(self.gram)))

    def shrunk(self, share: float | None = None) -> Moments:
        """The Gram matrix moved towards its diagonal, by `share` or as the samples warrant.

        With few samples the off-diagonal moments are mostly noise (measured: 16 images want about
        a third to two thirds, 256 a tenth, 1,024 next to nothing).
        """
        if self.samples == 0:
            return self
        amount = shrinkage(self.samples) if share is None else share
        diagonal = np.diag(self.gram)
        floor = 1e-6 * float(diagonal.mean()) + np.finfo(float).tiny
        gram = (1 - amount) * self.gram
        gram[np.diag_indices_from(gram)] = diagonal + floor
        return replace(self, gram=gram)


def shrinkage(samples: int) -> float:
    """How far to move a Gram matrix of this many independent inputs towards its diagonal."""
    return 1.0 / (1.0 + samples / 32.0)


def target(weight: Array, moments: Moments, ridge: float = _RIDGE) -> Array:
    """The weight [O, D] that best reproduces the wanted response from the input actually seen.

    W* = W + (C - W G)(G + lambda I)^-1: the regression of the response on the input, pulled towards
    the original weight. Equal to `weight` when the input is the original one.
    Source: Zhang et al. 2016, "Accelerating very deep convolutional networks", section 3.2.
    """
    original = np.asarray(weight, np.float64)
    residual = moments.cross - original @ moments.gram
    if not np.any(residual):
        return original
    size = len(moments.gram)
    strength = ridge * float(np.trace(moments.gram)) / size + np.finfo(float).tiny
    regular = moments.gram.copy()
    regular[np.diag_indices(size)] += strength
    # Transposed, a symmetric matrix is the same in the order that LAPACK can work on in place.
    correction = scipy.linalg.solve(
        regular.T, residual.T, assume_a="pos", overwrite_a=True, check_finite=False
    ).T
    wanted: Array = original + correction
    return wanted
