"""Rules of activations; what enters them is taken as Gaussian."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy

from graphopt.calibration.batch_statistics.step import ChannelMoments, Rule, Step
from graphopt.factorize.gaussian import clipped, through
from graphopt.graph.constants import constant
from graphopt.graph.scope import attribute_float
from graphopt.runtime import Array


def pointwise(move: Callable[[Step, Array, Array], tuple[Array, Array] | None]) -> Rule:
    """The rule of an activation from its effect on (mean, variance)."""

    def rule(step: Step) -> ChannelMoments | None:
        seen = step.operand(0)
        moved = None if seen is None else move(step, seen.mean, seen.variance)
        return None if moved is None else ChannelMoments(*moved)

    return rule


def smooth(function: Callable[[Array], Array]) -> Rule:
    """The rule of an activation without attributes, by quadrature."""
    return pointwise(lambda _, mean, variance: through(mean, variance, function))


def clip(step: Step, mean: Array, variance: Array) -> tuple[Array, Array] | None:
    """Bounds from the attributes (opset < 11) or from constants."""
    bounds = []
    for index, (name, default) in enumerate((("min", -np.inf), ("max", np.inf)), start=1):
        value = step.value(index)
        if value is None:
            bounds.append(attribute_float(step.node, name, default))
            continue
        array = constant(value)
        if array is None:
            return None
        bounds.append(float(array.reshape(-1)[0]))
    return clipped(mean, variance, *bounds) if bounds[0] <= bounds[1] else None


def hard_sigmoid(step: Step, mean: Array, variance: Array) -> tuple[Array, Array]:
    """min(max(alpha x + beta, 0), 1)."""
    alpha = attribute_float(step.node, "alpha", 0.2)
    beta = attribute_float(step.node, "beta", 0.5)
    return clipped(alpha * mean + beta, alpha**2 * variance, 0.0, 1.0)


def hard_swish(x: Array) -> Array:
    """x min(max(x / 6 + 1/2, 0), 1)."""
    found: Array = x * np.clip(x / 6 + 0.5, 0, 1)
    return found


def silu(x: Array) -> Array:
    """x sigmoid(x)."""
    found: Array = x * scipy.special.expit(x)
    return found
