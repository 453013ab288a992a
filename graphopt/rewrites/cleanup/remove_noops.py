"""Remove operators that hand their input on unchanged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.edit import Edit, bypass
from graphopt.graph.scope import (
    Scope,
    attribute_int,
    attribute_ints,
    attribute_string,
    is_op,
)
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal

Array = np.ndarray[Any, Any]
Check = Callable[[ir.Node, Scope], bool]


@dataclass(frozen=True)
class RemoveNoops(ExactRewrite):
    """Identity, Cast, Reshape, Transpose, Pad, Slice, Concat, Dropout, ... without effect  ==>  their input.

    Only where that holds for every input: shapes count as equal when each dimension is the same
    number or the same symbol. Dropout only in inference mode. Declines where the names of a graph
    input and a graph output would have to become one.
    """

    name = "remove-noops"
    kind = "clean-up"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per node that is without effect."""
        for node in scope.graph:
            check = _CHECKS.get(node.op_type)
            if check is None or not is_op(node, node.op_type) or not node.inputs:
                continue
            if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
                continue
            passed = _passed_on(node)
            source = node.inputs[passed] if passed is not None else None
            if source is None or not check(node, scope):
                continue
            if not bypass(scope, node, source):
                yield self.decline("it connects an output with a name that must stay", node)
                continue
            yield Proposal(self.name, (node,), partial(_take_out, scope, node, source))


def _take_out(scope: Scope, node: ir.Node, source: ir.Value) -> None:
    Edit(scope, RemoveNoops.name).commit((node,), {node.outputs[0]: source})


def _passed_on(node: ir.Node) -> int | None:
    """Which input the node hands on: the one that is not the neutral constant."""
    if node.op_type in ("Mul", "Add"):
        return 1 if constant(node.inputs[0]) is not None else 0
    return 0


def _same_shape(node: ir.Node, scope: Scope) -> bool:
    """Input and output shapes agree for every input (numbers or symbols, no unknowns)."""
    source, output = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or output.shape is None:
        return False
    if len(source.shape) != len(output.shape):
        return False
    for a, b in zip(source.shape, output.shape, strict=True):
        symbol = getattr(a, "value", a)
        if symbol is None or symbol != getattr(b, "value", b):
            return False
    return True


def _cast(node: ir.Node, scope: Scope) -> bool:
    source = node.inputs[0]
    return source is not None and source.dtype == attribute_int(node, "to", -1)


def _transpose(node: ir.Node, scope: Scope) -> bool:
    order = attribute_ints(node, "perm")
    return order is not None and order == tuple(range(len(order)))


def _pad(node: ir.Node, scope: Scope) -> bool:
    if scope.opset < 11:
        pads = attribute_ints(node, "pads")
        return pads is not None and not any(pads)
    array = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return array is not None and not np.any(array)


def _slice(node: ir.Node, scope: Scope) -> bool:
    if scope.opset >= 10 and len(node.inputs) > 4:
        steps = constant(node.inputs[4])
        if node.inputs[4] is not None and (steps is None or np.any(steps < 1)):
            return False
    return _same_shape(node, scope)


def _concat(node: ir.Node, scope: Scope) -> bool:
    return len(node.inputs) == 1


def _dropout(node: ir.Node, scope: Scope) -> bool:
    if scope.opset < 7:
        return False
    if scope.opset < 12 or len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    training = constant(node.inputs[2])
    return training is not None and not bool(training.reshape(-1)[0])


def _pool(node: ir.Node, scope: Scope) -> bool:
    kernel = attribute_ints(node, "kernel_shape")
    strides = attribute_ints(node, "strides") or ()
    pads = attribute_ints(node, "pads") or ()
    return (
        kernel is not None
        and all(k == 1 for k in kernel)
        and all(s == 1 for s in strides)
        and not any(pads)
        and attribute_string(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID")
    )


def _neutral(element: float, node: ir.Node, scope: Scope) -> bool:
    """Times one or plus zero, by a constant that does not widen the other operand."""
    passed = _passed_on(node)
    if passed is None:
        return False
    other, source = constant(node.inputs[1 - passed]), node.inputs[passed]
    if other is None or source is None or source.shape is None or not _is_number(other):
        return False
    if other.size != 1 or other.ndim > len(source.shape):
        return False
    return bool(other.reshape(-1)[0] == element)


def _is_number(array: Array) -> bool:
    return array.dtype.kind in "fiu" or "float" in str(array.dtype)  # bfloat16 is of kind V


def _always(node: ir.Node, scope: Scope) -> bool:
    return True


_CHECKS: dict[str, Check] = {
    "Identity": _always,
    "Cast": _cast,
    "Reshape": _same_shape,
    "Flatten": _same_shape,
    "Expand": _same_shape,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _concat,
    "Dropout": _dropout,
    "AveragePool": _pool,
    "MaxPool": _pool,
    "Mul": partial(_neutral, 1.0),
    "Div": partial(_neutral, 1.0),
    "Add": partial(_neutral, 0.0),
    "Sub": partial(_neutral, 0.0),
}
