"""The schemes whose first factor picks directions of the input: all ranks from one Cholesky.

If z = T x are new coordinates, ordered by importance, and only the leading n are kept, the best
second factor is a regression on them. With T G T^T = L L^T (Cholesky) and Z = W T^-1 L, keeping the
leading n coordinates leaves the error ||Z[:, n:]||^2 and the second factor is
Z[:, :n] L[:n, :n]^-1, because L is lower triangular. So one decomposition gives every rank. And
Z[:, :n] = W G T_n^T L[:n, :n]^-T: no more of it has to be made than the largest rank to be asked for.

Three schemes are of this kind. `mixing` (the input bottleneck; both orders of the spatial scheme):
T acts on one axis J of the patch and is shared by the K taps. `separate` (decoupling): every input
channel has its own T over its taps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LeadingFactors:
    """first: the leading rows of T ([R, J] for mixing, [T, J, K] for separate); second: float64.

    second: [O, R, K] for mixing, [O, T, J] for separate.
    """

    first: Array
    second: Array


@dataclass(frozen=True)
class LeadingFit:
    """All ranks, up to the largest asked for, of a leading-coordinates scheme in one metric.

    basis: T, all rows by importance. importance: squared response through each row were it alone,
    [J] for mixing, [J, T] for separate. step: coordinates per unit of rank. missed: [ranks + 1]
    squared response error left at rank 0, 1, 2, ...
    """

    basis: Array
    importance: Array
    lower: Array
    response: Array
    step: int
    missed: Array
    trailing: int

    @property
    def full(self) -> int:
        """The rank at which nothing is missed."""
        return len(self.basis)

    def factors(self, rank: int) -> LeadingFactors:
        """The factors of a rank."""
        count = rank * self.step
        block = self.lower[:count, :count]
        second = scipy.linalg.solve_triangular(
            block, self.response[:, :count].T, lower=True, trans="T", check_finite=False
        ).T
        second = second.reshape(self.response.shape[0], rank, self.trailing)
        return unit_rows(self.basis[:rank], second)


def unit_rows(first: Array, second: Array) -> LeadingFactors:
    """The same product with a first factor of rows of unit length.

    In a metric near singular (dead channels) they are too long for float16.
    """
    norms = np.linalg.norm(first, axis=-1)
    spread = norms.reshape(len(first), -1)  # [R, 1] for mixing, [T, J] for separate
    return LeadingFactors(first / norms[..., None], second * spread)


def mixing(weight: Array, gram: Array, most: int | None = None) -> LeadingFit:
    """Factor W [O, J, K] as sum_r B[o, r, k] A[r, j] in the metric G [J K, J K] of (j, k).

    most: the largest rank that will be asked for (None: J).

    T comes from the singular value decomposition of the stacked taps W_k S^(1/2), S the moment of
    the J axis averaged over taps: the best choice if taps were uncorrelated.
    """
    outputs, size, taps = weight.shape
    metric = gram.reshape(size, taps, size, taps)
    moment = np.einsum("jkik->ji", metric) / taps
    root = scipy.linalg.cholesky(regular(moment), lower=True, check_finite=False)
    stacked = np.moveaxis(weight, 2, 0).reshape(-1, size) @ root
    # Right singular vectors from the small side: J x J.
    values, vectors = scipy.linalg.eigh(stacked.T @ stacked, check_finite=False)
    vectors = vectors[:, ::-1]
    basis = scipy.linalg.solve_triangular(root, vectors, lower=True, trans="T").T
    inverse = root @ vectors
    leading = basis[:most]
    moved = np.tensordot(leading, metric, axes=(1, 0))  # [R, k, i, k']
    moved = np.tensordot(moved, leading, axes=(2, 1)).transpose(0, 1, 3, 2)
    seen = np.tensordot(weight, inverse, axes=(1, 0)).transpose(0, 2, 1)  # [O, J, K]
    answers = (weight.reshape(outputs, -1) @ gram).reshape(weight.shape)
    cross = np.tensordot(answers, leading, axes=(1, 1)).transpose(0, 2, 1)  # [O, R, K]
    count = len(leading) * taps
    return _fit(
        basis,
        np.maximum(values[::-1], 0.0),
        moved.reshape(count, count),
        cross.reshape(outputs, count),
        seen.reshape(outputs, size * taps),
        energy=float(np.sum(answers * weight)),
        step=taps,
        trailing=taps,
    )


def separate(weight: Array, gram: Array, most: int | None = None) -> LeadingFit:
    """Factor W [O, J, K] as sum_t P[o, t, j] D[t, j, k] in the metric G [J K, J K] of (j, k).

    most: the most terms that will be asked for (None: K).

    D_j: the leading right singular vectors of W_j in the metric of its own channel.
    Source: Guo et al. 2018, "Network decoupling".
    """
    outputs, size, taps = weight.shape
    metric = gram.reshape(size, taps, size, taps)
    basis = np.empty((taps, size, taps))
    inverse = np.empty((size, taps, taps))
    importance = np.zeros((size, taps))
    for channel in range(size):
        own = regular(metric[channel, :, channel, :])
        root = scipy.linalg.cholesky(own, lower=True, check_finite=False)
        _, values, right = np.linalg.svd(weight[:, channel] @ root, full_matrices=True)
        importance[channel, : len(values)] = values**2
        basis[:, channel] = scipy.linalg.solve_triangular(root, right.T, lower=True, trans="T").T
        inverse[channel] = root @ right.T
    # New coordinates (t, j): every channel's t-th filter response.
    leading = basis[:most]
    moved = np.einsum("tjk,jkil->tjil", leading, metric, optimize=True)
    moved = np.einsum("tjil,sil->tjsi", moved, leading, optimize=True)
    seen = np.einsum("ojk,jkt->otj", weight, inverse, optimize=True)
    answers = (weight.reshape(outputs, -1) @ gram).reshape(weight.shape)
    cross = np.einsum("ojk,tjk->otj", answers, leading, optimize=True)
    count = len(leading) * size
    return _fit(
        basis,
        importance,
        moved.reshape(count, count),
        cross.reshape(outputs, count),
        seen.reshape(outputs, size * taps),
        energy=float(np.sum(answers * weight)),
        step=size,
        trailing=size,
    )


def _fit(
    basis: Array,
    importance: Array,
    gram: Array,
    cross: Array,
    weight: Array,
    *,
    energy: float,
    step: int,
    trailing: int,
) -> LeadingFit:
    """Of the moments of the leading coordinates [n, n], and of theirs with the response [O, n].

    weight: in all coordinates, [O, J K]. energy: squared response.
    """
    # Transposed, a symmetric matrix is the same in the order that LAPACK can work on in place.
    metric = regular(gram)
    # The floor belongs to all coordinates: without it, what no input shows would be forgotten.
    floor = _floor(gram)
    cross = cross + floor * weight[:, : len(gram)]
    energy += floor * float(np.sum(weight**2))
    lower = scipy.linalg.cholesky(metric.T, lower=True, overwrite_a=True, check_finite=False)
    response = scipy.linalg.solve_triangular(lower, cross.T, lower=True, check_finite=False).T
    per_rank = (response**2).sum(axis=0).reshape(-1, step).sum(axis=1)
    left = 0.0 if len(gram) == weight.shape[1] else max(energy - float(per_rank.sum()), 0.0)
    missed = left + np.concatenate([np.cumsum(per_rank[::-1])[::-1], [0.0]])
    return LeadingFit(basis, importance, lower, response, step, missed, trailing)


def regular(gram: Array) -> Array:
    """Symmetric, with a floor that makes a Cholesky decomposition possible."""
    symmetric = gram + gram.T
    symmetric *= 0.5
    symmetric[np.diag_indices_from(symmetric)] += _floor(gram)
    floored: Array = symmetric
    return floored


def _floor(gram: Array) -> float:
    return 1e-10 * float(np.trace(gram)) / len(gram) + 1e-30
