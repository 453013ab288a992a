"""A pointwise convolution before a depthwise one, T times: every output channel is a problem of its own.

    W[o, c, u] ~ sum_t D_t[o, u] P_t[o, c]

For one output o this is a matrix [J, K] (channels, taps) of rank T, in a metric G [J K, J K] that all
outputs share. Were G the product of a metric A A^T of the channels and one B B^T of the taps, the
singular vectors of A^T W_o B would be the answer: the T leading ones on the side of the channels are
the start. Behind them the taps are a regression in the exact metric, with T K unknowns.

The polish moves the channels' side too, with the taps eliminated (variable projection: see
`polish`, whose two problems share one first factor among all outputs; here they share nothing).
Source: Guo et al. 2018, "Network decoupling".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy

from graphopt.factorize.leading import regular

Array = np.ndarray[Any, Any]

_CHUNK_BYTES = 1 << 26
"""Of the largest intermediate: outputs are taken so many at a time."""

_RIDGE = 1e-10
_FEWEST_STEPS, _MOST_STEPS = 3, 12
_WORK = 1.5e10
"""Multiplications after which no more than the fewest steps are taken (two seconds or so)."""
_WORTHWHILE = 1e-10
"""Less of the response's energy gained than this is rounding: the start is returned."""


@dataclass(frozen=True)
class ByOutput:
    """first: the channels' side [O, T, J], rows of unit length. second: the taps' side [O, T, K].

    missed: squared response error.
    """

    first: Array
    second: Array
    missed: float

    @property
    def composite(self) -> Array:
        """[O, J, K]."""
        summed: Array = np.einsum("otj,otk->ojk", self.first, self.second)
        return summed


@dataclass(frozen=True)
class ByOutputFit:
    """All numbers of terms up to `most` for one weight [O, J, K] in one metric.

    seen: weight times metric, [O, J, K]. start: channels' sides [O, most, J], leading ones first;
    strength: their singular values [O, most]. normal, cross: moments behind all of them, [O, most K,
    most K] and [O, most K]; those of fewer terms are leading blocks. whiten: A^-T [J, J], from
    coordinates in which the channels' metric is the unit to channels.
    """

    weight: Array
    gram: Array
    seen: Array
    start: Array
    strength: Array
    whiten: Array
    normal: Array
    cross: Array

    @property
    def energy(self) -> float:
        """Squared response."""
        return float(np.sum(self.seen * self.weight))

    def factors(self, terms: int) -> ByOutput:
        """The factors for so many terms."""
        count = terms * self.weight.shape[2]
        return _behind(
            self.start[:, :terms],
            self.normal[:, :count, :count],
            self.cross[:, :count],
            self.energy,
        )[0]

    def polished(self, terms: int, steps: int | None = None) -> ByOutput:
        """Better factors, never worse than `factors`.

        steps: most L-BFGS steps; by default as many as their cost allows.
        """
        start = self.factors(terms)
        if self.energy <= 0 or terms >= min(self.weight.shape[1:]):
            return start
        if steps is None:
            work = (terms + 1.0) * self.weight[0].size ** 2 * len(self.weight)
            steps = int(np.clip(_WORK / work, _FEWEST_STEPS, _MOST_STEPS))
        best = _descended(self, terms, steps)
        return best if start.missed - best.missed > _WORTHWHILE * self.energy else start


def by_output(weight: Array, gram: Array, most: int) -> ByOutputFit:
    """Take apart W [O, J, K] in the metric G [J K, J K] of (j, k), for up to `most` terms."""
    outputs, size, taps = weight.shape
    metric = gram.reshape(size, taps, size, taps)
    channels = regular(np.einsum("jkik->ji", metric) / taps)
    spatial = regular(np.einsum("jkjl->kl", metric) / size)
    root = scipy.linalg.cholesky(channels, lower=True, check_finite=False)
    across = scipy.linalg.cholesky(spatial, lower=True, check_finite=False)
    # Both of them have the scale of the metric: their product has it once.
    across /= np.sqrt(max(float(np.trace(channels)) / size, np.finfo(float).tiny))
    left, values, _ = np.linalg.svd(root.T @ weight @ across, full_matrices=False)
    most = min(most, values.shape[1])
    whiten = scipy.linalg.solve_triangular(
        root, np.eye(size), lower=True, trans="T", check_finite=False
    )
    start = left[:, :, :most].transpose(0, 2, 1) @ whiten.T
    seen = (weight.reshape(outputs, -1) @ gram).reshape(weight.shape)
    normal, cross = _moments(start, gram, seen)
    return ByOutputFit(weight, gram, seen, start, values[:, :most], whiten, normal, cross)


def _descended(fit: ByOutputFit, terms: int, steps: int) -> ByOutput:
    """The best of so many steps of L-BFGS from the start."""
    origin, energy = fit.start[:, :terms], fit.energy
    # Curvature along a coordinate is the squared response through the term, nearly.
    floor = 1e-3 * np.sqrt(energy / len(origin))
    scale = np.sqrt(energy / 2) / np.maximum(fit.strength[:, :terms, None], floor)
    best: ByOutput | None = None

    def value_and_gradient(vector: Array) -> tuple[float, Array]:
        nonlocal best
        moved = (vector.reshape(origin.shape) * scale) @ fit.whiten.T
        found, gradient = evaluated(fit, origin + moved)
        if best is None or found.missed < best.missed:
            best = found
        return found.missed / energy, ((gradient @ fit.whiten) * scale).ravel() / energy

    scipy.optimize.minimize(
        value_and_gradient,
        np.zeros(origin.size),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": steps, "maxfun": 2 * steps, "maxcor": 10, "ftol": 1e-7},
    )
    assert best is not None
    return best


def evaluated(fit: ByOutputFit, first: Array) -> tuple[ByOutput, Array]:
    """The best taps behind these channels' sides [O, T, J], and the gradient of what they leave.

    By the envelope theorem the gradient is the one at these taps held fixed.
    """
    normal, cross = _moments(first, fit.gram, fit.seen)
    found, second = _behind(first, normal, cross, fit.energy)
    composite = np.einsum("otj,otk->ojk", first, second).reshape(len(first), -1)
    left = fit.seen - (composite @ fit.gram).reshape(fit.seen.shape)
    return found, -2 * np.einsum("otk,ojk->otj", second, left)


def _moments(first: Array, gram: Array, seen: Array) -> tuple[Array, Array]:
    """Of the features first x, (t, k) for every output: with themselves, and with the response."""
    outputs, terms, size = first.shape
    taps = seen.shape[2]
    count = terms * taps
    normal = np.empty((outputs, count, count))
    for part in _chunks(outputs, count * size * taps):
        moved = first[part].reshape(-1, size) @ gram.reshape(size, -1)
        moved = moved.reshape(-1, count, size, taps)
        normal[part] = np.matmul(first[part][:, None], moved).reshape(-1, count, count)
    return normal, np.einsum("otj,ojk->otk", first, seen).reshape(outputs, count)


def _behind(first: Array, normal: Array, cross: Array, energy: float) -> tuple[ByOutput, Array]:
    """The factors with the best taps, and the taps [O, T, K] as they belong to `first`."""
    count = normal.shape[-1]
    symmetric = (normal + normal.transpose(0, 2, 1)) / 2
    regularized = symmetric.copy()
    ridge = _RIDGE * np.trace(symmetric, axis1=1, axis2=2) / count + 1e-300
    regularized[:, np.arange(count), np.arange(count)] += ridge[:, None]
    solved = np.linalg.solve(regularized, cross[..., None])
    # Once more on what is left over: the ridge makes it possible, and is not to be seen in it.
    solved += np.linalg.solve(regularized, cross[..., None] - symmetric @ solved)
    solved = solved[..., 0]
    explained = float(np.sum(solved * cross))
    inner = float(np.einsum("oi,oij,oj->", solved, symmetric, solved, optimize=True))
    second = solved.reshape(*first.shape[:2], -1)
    norms = np.linalg.norm(first, axis=2, keepdims=True)
    norms[norms == 0] = 1.0
    missed = max(energy - 2 * explained + inner, 0.0)
    return ByOutput(first / norms, second * norms, missed), second


def _chunks(count: int, numbers: int) -> Iterator[slice]:
    step = max(1, _CHUNK_BYTES // (8 * numbers))
    for begin in range(0, count, step):
        yield slice(begin, begin + step)
