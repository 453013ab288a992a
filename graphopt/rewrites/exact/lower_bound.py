"""A number that a value never falls below, whatever is fed."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import (
    Scope,
    attribute_float,
    attribute_int,
    attribute_ints,
    is_op,
)

_NEVER_NEGATIVE = (
    "Relu", "Sigmoid", "HardSigmoid", "Softmax", "Softplus", "Exp", "Abs", "Sqrt",
)  # fmt: skip
_HANDED_ON = (
    "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split",
    "DepthToSpace", "SpaceToDepth", "GlobalMaxPool",
)  # fmt: skip
"""Operators whose output holds elements of their first input and nothing else."""

_AVERAGED = ("Dropout", "AveragePool", "GlobalAveragePool")
"""Operators that keep what is never negative so, but may come out below another bound."""

_DEPTH = 6
"""How many operators back it looks."""


def lower_bound(value: ir.Value | None, scope: Scope, depth: int = _DEPTH) -> float:
    """A number that a float value never falls below (unless it is NaN); -inf where none is known."""
    if value is None or depth == 0 or value.dtype is None or not value.dtype.is_floating_point():
        return -math.inf  # integers wrap: abs(-128) = -128
    array = constant(value)
    if array is not None:
        smallest = float(array.min()) if array.size else -math.inf
        return smallest if math.isfinite(smallest) else -math.inf
    node = value.producer()
    if node is None or not is_op(node, node.op_type):
        return -math.inf
    if is_op(node, *_NEVER_NEGATIVE):
        return 0.0
    if is_op(node, "Clip"):
        return _clipped(node, scope)
    if is_op(node, "Concat", "Add", "Mul"):
        bounds = [lower_bound(source, scope, depth - 1) for source in node.inputs]
        if is_op(node, "Concat"):
            return min(bounds)
        if is_op(node, "Add"):
            return sum(bounds)
        return 0.0 if min(bounds) >= 0 else -math.inf
    if value is not node.outputs[0] and not is_op(node, "Split"):
        return -math.inf
    if is_op(node, *_HANDED_ON):
        return lower_bound(node.inputs[0], scope, depth - 1)
    if is_op(node, *_AVERAGED):
        return 0.0 if lower_bound(node.inputs[0], scope, depth - 1) >= 0 else -math.inf
    if is_op(node, "MaxPool") and _sees_input(node):
        return lower_bound(node.inputs[0], scope, depth - 1)
    return -math.inf


def _clipped(node: ir.Node, scope: Scope) -> float:
    if scope.opset < 11:
        low = attribute_float(node, "min", -math.inf)
        return min(low, attribute_float(node, "max", math.inf))
    bounds: list[float] = []
    for index, default in ((1, -math.inf), (2, math.inf)):
        value = node.inputs[index] if index < len(node.inputs) else None
        array = np.asarray(default) if value is None else constant(value)
        if array is None or array.size != 1:
            return -math.inf
        bounds.append(float(array.reshape(-1)[0]))
    return min(bounds)


def _sees_input(node: ir.Node) -> bool:
    """Whether no window of a MaxPool can lie in its padding altogether."""
    if attribute_int(node, "ceil_mode", 0):
        return False
    return all(d == 1 for d in attribute_ints(node, "dilations") or ())
