"""Rules of sums and products; operands are taken as uncorrelated."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from graphopt.calibration.batch_statistics.activations import silu
from graphopt.calibration.batch_statistics.step import ChannelMoments, Rule, Step
from graphopt.factorize.gaussian import through
from graphopt.graph.constants import constant
from graphopt.graph.scope import attribute_float, is_op
from graphopt.runtime import Array


def plus(sign: int) -> Rule:
    """Add and Sub: means add up, and so do variances (operands are taken as uncorrelated)."""

    def rule(step: Step) -> ChannelMoments | None:
        sides = [_side(step, index) for index in range(2)]
        if sides[0] is None or sides[1] is None:
            return None
        a, b = sides[0], sides[1]
        return _whole(step, a.mean + sign * b.mean, a.variance + b.variance)

    return rule


def times(step: Step) -> ChannelMoments | None:
    """E[xy] = E[x] E[y] for uncorrelated operands; x sigmoid(x) is seen for what it is."""
    gated = _gated(step)
    if gated is not None:
        seen, function = gated
        return ChannelMoments(*through(seen.mean, seen.variance, function))
    a, b = _side(step, 0), _side(step, 1)
    if a is None or b is None or step.value(0) is step.value(1):
        return None
    spread = a.variance * b.variance + a.variance * b.mean**2 + b.variance * a.mean**2
    return _whole(step, a.mean * b.mean, spread)


def divided(step: Step) -> ChannelMoments | None:
    """By a constant only."""
    a, array = step.operand(0), constant(step.value(1))
    by = None if array is None else step.channels(array)
    if a is None or by is None or np.any(by == 0):
        return None
    return _whole(step, a.mean / by, a.variance / by**2)


def _gated(step: Step) -> tuple[ChannelMoments, Callable[[Array], Array]] | None:
    """x and its function f(x) where the product is x sigmoid(x) or x hardsigmoid(x)."""
    for index in range(2):
        gate, seen = step.value(1 - index), step.operand(index)
        before = None if gate is None else gate.producer()
        if seen is None or before is None or before.inputs[0] is not step.value(index):
            continue
        if is_op(before, "Sigmoid"):
            return seen, silu
        if is_op(before, "HardSigmoid"):
            alpha = attribute_float(before, "alpha", 0.2)
            return seen, partial(_hard_gate, alpha, attribute_float(before, "beta", 0.5))
    return None


def _hard_gate(alpha: float, beta: float, x: Array) -> Array:
    found: Array = x * np.clip(alpha * x + beta, 0, 1)
    return found


def _side(step: Step, index: int) -> ChannelMoments | None:
    """An operand: what is known of it, or a constant (one number a channel, variance 0)."""
    seen = step.operand(index)
    if seen is not None:
        same = step.scope.rank(step.value(index)) == step.scope.rank(step.output)
        return seen if same else None
    array = constant(step.value(index))
    numbers = None if array is None else step.channels(array)
    return None if numbers is None else ChannelMoments(numbers, np.zeros_like(numbers))


def _whole(step: Step, mean: Array, variance: Array) -> ChannelMoments:
    shape = step.scope.shape(step.output)
    size = (len(mean) if shape is None else shape[1],)
    return ChannelMoments(np.broadcast_to(mean, size), np.broadcast_to(variance, size))
