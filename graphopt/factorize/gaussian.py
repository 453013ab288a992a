"""Mean and variance of functions of a Gaussian: what an activation makes of a channel.

Everywhere mean and variance are arrays of one shape (one entry a channel), float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import scipy

Array = np.ndarray[Any, Any]

_NODES = 64
_TINY = 1e-150


def clipped(mean: Array, variance: Array, low: float, high: float) -> tuple[Array, Array]:
    """Mean and variance of min(max(x, low), high) for x ~ N(mean, variance).

    With a = (low - mean) / s, b = (high - mean) / s, phi and Phi of the standard normal:
    E[y] = low Phi(a) + high (1 - Phi(b)) + mean (Phi(b) - Phi(a)) + s (phi(a) - phi(b)), and
    E[y^2] = low^2 Phi(a) + high^2 (1 - Phi(b)) + (mean^2 + s^2) (Phi(b) - Phi(a))
    + 2 mean s (phi(a) - phi(b)) + s^2 (a phi(a) - b phi(b)). Taken around the clipped mean, so that
    neither a dead channel nor one far inside loses digits. A bound may be infinite.
    """
    centre = np.clip(mean, low, high)
    deviation = np.sqrt(np.maximum(variance, _TINY))
    offset = mean - centre
    below, low_density, low_tail, low_term = _edge(low, mean, centre, deviation)
    above, high_density, high_tail, high_term = _edge(high, mean, centre, deviation)
    above, inside = 1 - above, above - below
    slope = deviation * (low_density - high_density)
    first = low_tail * below + high_tail * above + offset * inside + slope
    second = low_tail**2 * below + high_tail**2 * above + (offset**2 + deviation**2) * inside
    second += 2 * offset * slope + deviation**2 * (low_term - high_term)
    return centre + first, np.maximum(second - first**2, 0.0)


def rectified(mean: Array, variance: Array) -> tuple[Array, Array]:
    """Mean and variance of max(x, 0)."""
    return clipped(mean, variance, 0.0, np.inf)


def leaky(mean: Array, variance: Array, alpha: float) -> tuple[Array, Array]:
    """Mean and variance of x where x > 0, alpha x elsewhere: alpha x + (1 - alpha) max(x, 0).

    Cov(x, max(x, 0)) = variance * P(x > 0) (Stein's lemma).
    """
    middle, spread = rectified(mean, variance)
    shared = variance * scipy.special.ndtr(mean / np.sqrt(np.maximum(variance, _TINY)))
    rest = 1 - alpha
    total = alpha**2 * variance + rest**2 * spread + 2 * alpha * rest * shared
    return alpha * mean + rest * middle, np.maximum(total, 0.0)


def through(
    mean: Array, variance: Array, function: Callable[[Array], Array]
) -> tuple[Array, Array]:
    """Mean and variance of a smooth function, by Gauss-Hermite quadrature (64 nodes)."""
    nodes, weights = _hermite()
    values = function(mean[..., None] + np.sqrt(variance)[..., None] * nodes)
    middle = values @ weights
    return middle, ((values - middle[..., None]) ** 2) @ weights


@cache
def _hermite() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return nodes, weights / weights.sum()


def _edge(
    bound: float, mean: Array, centre: Array, deviation: Array
) -> tuple[Array, Array, Array, Array]:
    """Of a bound, at z = (bound - mean) / s: Phi(z), phi(z), bound - centre, z phi(z)."""
    if np.isinf(bound):
        zero = np.zeros_like(mean)
        return zero + (bound > 0), zero, zero, zero
    z = (bound - mean) / deviation
    with np.errstate(over="ignore", under="ignore"):
        density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    return scipy.special.ndtr(z), density, bound - centre, np.where(density > 0, z * density, 0.0)
