"""Piecewise-linear activations as the interval they clip to, and the operators for one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, attribute_float, is_op


@dataclass(frozen=True)
class Interval:
    """clip(x, low, high): Relu is [0, inf). Bounds of an integer Clip are integers (exact)."""

    low: float
    high: float

    def then(self, after: Interval) -> Interval:
        """The composition clip(clip(x, self), after), for non-empty intervals."""
        return Interval(
            min(max(self.low, after.low), after.high), min(max(self.high, after.low), after.high)
        )


RELU = Interval(0.0, math.inf)


def interval_of(node: ir.Node, scope: Scope) -> Interval | str | None:
    """The interval of a Relu or Clip; None for LeakyRelu; a reason where it is not usable."""
    if is_op(node, "LeakyRelu"):
        return None
    if is_op(node, "Relu"):
        return RELU
    if scope.opset < 11:
        low = attribute_float(node, "min", -math.inf)
        high = attribute_float(node, "max", math.inf)
    else:
        bounds: list[float] = []
        for index, default in ((1, -math.inf), (2, math.inf)):
            value = node.inputs[index] if index < len(node.inputs) else None
            array = constant(value) if value is not None else np.asarray(default)
            if array is None or array.size != 1:
                return "a bound is not one constant number"
            bounds.append(array.reshape(-1)[0].item())
        low, high = bounds
    return Interval(low, high) if low <= high else "the interval is empty"


def clip(
    change: Edit,
    scope: Scope,
    source: ir.Value | None,
    interval: Interval,
    dtype: ir.DataType,
    node: ir.Node,
    hint: str,
) -> ir.Value:
    """A Clip of a value to an interval, in the form of the opset, in the place of a node.

    https://onnx.ai/onnx/operators/onnx__Clip.html
    """
    bounds = (("min", interval.low), ("max", interval.high))
    if scope.opset < 11:
        limits = {what: float(bound) for what, bound in bounds if math.isfinite(bound)}
        return change.node("Clip", [source], limits, hint=hint, name=node.name)
    operands: list[ir.Value | None] = [source]
    for what, bound in bounds:
        finite = math.isfinite(bound)
        operands.append(
            change.constant(np.asarray(bound, dtype.numpy()), f"{hint}_{what}") if finite else None
        )
    while operands[-1] is None:
        operands.pop()
    return change.node("Clip", operands, hint=hint, name=node.name)
