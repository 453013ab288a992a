"""Recognise LeakyRelu (and Relu) where it is written with Where or Max."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import Scope, is_op
from graphopt.rewrites.base import ExactRewrite, Finding
from graphopt.rewrites.exact.polynomials import read, scalar
from graphopt.rewrites.exact.recognised import RUNNABLE, Recognised


@dataclass(frozen=True)
class RecogniseLeakyRelu(ExactRewrite):
    """Where(x > 0, x, a x), Max(x, a x)  ==>  LeakyRelu.          Where(x > 0, x, 0)  ==>  Relu.

        LeakyRelu(x; a) = x if x >= 0 else a x  = max(x, a x)  if 0 < a <= 1

    With >, >=, <, <= and the operands on either side. The same for every number; NaN is none.
    Declines when an intermediate value is used elsewhere, and for element types that onnxruntime
    has no LeakyRelu of.
    https://onnx.ai/onnx/operators/onnx__LeakyRelu.html
    """

    name = "recognise-leaky-relu"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per Where or Max that hands on what is positive and scales the rest."""
        if scope.opset < 7:
            return
        for node in scope.graph:
            found = None
            if is_op(node, "Where"):
                found = _selection(node, scope)
            elif is_op(node, "Max"):
                found = _maximum(node, scope)
            if found is not None:
                yield found.finding(self, scope)


def _maximum(node: ir.Node, scope: Scope) -> Recognised | None:
    """Max(x, a x)."""
    if len(node.inputs) != 2:
        return None
    for x, other in (node.inputs, node.inputs[::-1]):
        if x is None or x is other or constant(x) is not None:
            continue
        slope, nodes = _slope(other, x, scope)
        if 0 < slope <= 1:
            return _leaky(node, x, slope, nodes)
    return None


def _selection(node: ir.Node, scope: Scope) -> Recognised | None:
    """Where(x > 0, x, a x), also with >=, and turned round with <, <=."""
    condition, chosen, other = node.inputs
    test = None if condition is None else condition.producer()
    if test is None or test.graph is not scope.graph:
        return None
    if not is_op(test, "Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
        return None
    x, bound = test.inputs
    positive = test.op_type.startswith("Greater")
    if constant(x) is not None:
        x, bound, positive = bound, x, not positive
    above, below = (chosen, other) if positive else (other, chosen)
    if x is None or above is not x or scalar(bound, x, scope) != 0:
        return None
    if scalar(below, x, scope) == 0:
        return _leaky(node, x, 0.0, frozenset((test,)))
    slope, nodes = _slope(below, x, scope)
    return _leaky(node, x, slope, nodes | {test}) if slope else None


def _slope(value: ir.Value | None, x: ir.Value, scope: Scope) -> tuple[float, frozenset[ir.Node]]:
    """a and the nodes of a value that is a x; zero if it is not."""
    scaled = read(value, (x,), scope)
    if scaled is None or scaled.terms.keys() != {(1,)}:
        return 0.0, frozenset()
    return scaled.terms[(1,)], scaled.nodes


def _leaky(node: ir.Node, x: ir.Value, slope: float, nodes: frozenset[ir.Node]) -> Recognised:
    inside = nodes | {node}
    if slope:
        return Recognised("LeakyRelu", 6, x, node.outputs[0], inside, {"alpha": slope})
    types = (*RUNNABLE, ir.DataType.DOUBLE)
    return Recognised("Relu", 6, x, node.outputs[0], inside, types=types)
