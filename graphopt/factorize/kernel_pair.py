"""Kernel pair: one k x k convolution as two smaller ones, 5x5 -> 3x3 (C -> M), 3x3 (M -> O).

Two convolutions with kernels A [M, C, a, a] and B [O, M, b, b] compose to the kernel

    W[o, c, u] = sum_m sum_{i + j = u} B[o, m, j] A[m, c, i],      k = a + b - 1

Linear in A for fixed B and in B for fixed A, so it is fitted by alternating least squares, started
from the principal components of the a x a sub-kernels of every filter. The normal equations are
built from correlations of the kernels, never from the (large) design matrix.
Source of the scheme: Simonyan & Zisserman 2015; Szegedy et al. 2016, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import scipy

Array = np.ndarray[Any, Any]

_RIDGE = 1e-10


@dataclass(frozen=True)
class KernelPairFactors:
    """first: [M, C, a, a]; second: [O, M, b, b]; error: relative Frobenius error of the composite."""

    first: Array
    second: Array
    error: float


def compose(first: Array, second: Array) -> Array:
    """The kernel [O, C, a+b-1, a+b-1] that `first` [M, C, a, a] then `second` [O, M, b, b] make."""
    (rows_a, cols_a), (rows_b, cols_b) = first.shape[2:], second.shape[2:]
    size = (rows_a + rows_b - 1, cols_a + cols_b - 1)
    out = np.zeros((second.shape[0], first.shape[1], *size))
    for y, x in product(range(rows_b), range(cols_b)):
        part = np.tensordot(second[:, :, y, x], first, axes=1)
        out[:, :, y : y + rows_a, x : x + cols_a] += part
    return out


def fit(weight: Array, middle: int, *, rounds: int = 20, first_size: int = 3) -> KernelPairFactors:
    """Fit the pair to a weight [O, C, k, k] with `middle` channels between them.

    Args:
        weight: The kernel to approximate.
        middle: M, the channels between the two convolutions.
        rounds: Rounds of alternating least squares.
        first_size: a; the second kernel is k - a + 1 wide.

    Raises:
        ValueError: The kernel is smaller than the first factor's.
    """
    target = np.asarray(weight, np.float64)
    if min(target.shape[2:]) < first_size:
        raise ValueError(f"a {target.shape[2:]} kernel has no {first_size}-wide factor")
    first = _principal_sub_kernels(target, middle, first_size)
    second = _solve_second(target, first)
    for _ in range(rounds):
        first = _balanced(_solve_first(target, second))
        second = _solve_second(target, first)
    return KernelPairFactors(first, second, relative_error(target, compose(first, second)))


def _principal_sub_kernels(weight: Array, middle: int, size: int) -> Array:
    """The leading `middle` right singular vectors of all sub-kernels, as [M, C, a, a]."""
    rows, cols = weight.shape[2:]
    subs = [
        weight[:, :, y : y + size, x : x + size].reshape(weight.shape[0], -1)
        for y, x in product(range(rows - size + 1), range(cols - size + 1))
    ]
    _, _, right = scipy.linalg.svd(np.concatenate(subs), full_matrices=False)
    basis = np.zeros((middle, right.shape[1]))
    basis[: min(middle, len(right))] = right[:middle]
    if middle > len(right):  # more channels than directions: fill with reproducible noise
        rng = np.random.default_rng(0)
        basis[len(right) :] = rng.standard_normal((middle - len(right), right.shape[1]))
        basis[len(right) :] /= np.linalg.norm(basis[len(right) :], axis=1, keepdims=True)
    return basis.reshape(middle, weight.shape[1], size, size)


def _balanced(first: Array) -> Array:
    norms = np.linalg.norm(first.reshape(len(first), -1), axis=1)
    return first / np.where(norms > 0, norms, 1.0)[:, None, None, None]


def _solve_second(weight: Array, first: Array) -> Array:
    """Least squares for B given A: for every filter o, over the shifted kernels of A."""
    sizes = tuple(k - a + 1 for k, a in zip(weight.shape[2:], first.shape[2:], strict=True))
    offsets = list(product(*map(range, sizes)))
    middle, outputs = first.shape[0], weight.shape[0]
    flat = np.moveaxis(first, 0, 1)  # [C, M, a, a]: summed over C
    gram = _shift_gram(flat, offsets)
    rows, cols = first.shape[2:]
    right = np.empty((outputs, len(offsets), middle))
    for index, (y, x) in enumerate(offsets):
        window = weight[:, :, y : y + rows, x : x + cols]
        right[:, index] = np.tensordot(window, first, axes=([1, 2, 3], [1, 2, 3]))
    solved = _solve(gram, right.reshape(outputs, -1).T).T
    return np.moveaxis(solved.reshape(outputs, *sizes, middle), -1, 1)


def _solve_first(weight: Array, second: Array) -> Array:
    """Least squares for A given B: for every input channel c, over the shifted kernels of B."""
    swapped = np.moveaxis(weight, 0, 1)  # [C, O, k, k]
    mirrored = np.moveaxis(second, 0, 1)  # [M, O, b, b]
    return np.moveaxis(_solve_second(swapped, mirrored), 0, 1)


def _shift_gram(kernels: Array, offsets: list[tuple[int, ...]]) -> Array:
    """Inner products of all kernels [S, M, a, a] at all pairs of offsets: [P M, P M]."""
    middle = kernels.shape[1]
    cache: dict[tuple[int, int], Array] = {}
    count = len(offsets)
    gram = np.empty((count, middle, count, middle))
    for p, (y, x) in enumerate(offsets):
        for q, (v, u) in enumerate(offsets):
            shift = (v - y, u - x)
            if shift not in cache:
                cache[shift] = _correlation(kernels, *shift)
            gram[p, :, q, :] = cache[shift]
    return gram.reshape(count * middle, count * middle)


def _correlation(kernels: Array, dy: int, dx: int) -> Array:
    """[M, M]: kernel m against kernel n moved by (dy, dx), over the part where both exist."""
    rows, cols = kernels.shape[2:]
    if abs(dy) >= rows or abs(dx) >= cols:
        return np.zeros((kernels.shape[1],) * 2)
    here = kernels[:, :, max(dy, 0) : rows + min(dy, 0), max(dx, 0) : cols + min(dx, 0)]
    there = kernels[:, :, max(-dy, 0) : rows + min(-dy, 0), max(-dx, 0) : cols + min(-dx, 0)]
    return np.tensordot(here, there, axes=([0, 2, 3], [0, 2, 3]))


def _solve(gram: Array, right: Array) -> Array:
    """Positive-definite solve with a ridge far below the diagonal; zero where the matrix is zero."""
    ridge = _RIDGE * float(np.trace(gram)) / len(gram) or 1.0
    regular = gram + ridge * np.eye(len(gram))
    solved: Array = scipy.linalg.solve(regular, right, assume_a="pos", check_finite=False)
    return solved


def relative_error(exact: Array, approximation: Array) -> float:
    """||exact - approximation|| / ||exact|| (Frobenius), 0 when both are zero."""
    wide = np.asarray(exact, np.float64)  # squares of float16 overflow
    norm, distance = float(np.linalg.norm(wide)), float(np.linalg.norm(wide - approximation))
    return distance / norm if norm else (0.0 if distance == 0 else math.inf)
