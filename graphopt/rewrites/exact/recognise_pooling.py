"""Recognise global pooling where it is written as a reduction over space."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, attribute_int, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.cleanup.axes import integers

_POOLS = {"ReduceMean": "GlobalAveragePool", "ReduceMax": "GlobalMaxPool"}

_RUNNABLE = (ir.DataType.FLOAT, ir.DataType.FLOAT16)

_BLOCKED = ("Conv", "MaxPool", "AveragePool")
"""What onnxruntime computes in its blocked layout."""

_BETWEEN = (
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Tanh",
    "Mul",
    "Add",
)

_MOST_BETWEEN = 4


@dataclass(frozen=True)
class RecognisePooling(ExactRewrite):
    """ReduceMean | ReduceMax over all spatial axes  ==>  GlobalAveragePool | GlobalMaxPool.

        mean of x[n, c, ...] over every axis from 2 on, which stay with size 1

    Gated: onnxruntime's pooling takes longer than its reduction (1.2-1.9 of the time) except on
    what convolutions leave in the blocked layout (0.83-0.99). So it is measured together with the
    convolution before it, which is in the proposal for that alone.
    Declines when the axes or the rank are not known, and for types that onnxruntime does not pool.
    https://onnx.ai/onnx/operators/onnx__GlobalAveragePool.html
    """

    gated: bool = True
    name = "recognise-pooling"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per reduction that keeps just batch and channels."""
        for node in scope.graph:
            if not is_op(node, *_POOLS) or not node.inputs or node.inputs[0] is None:
                continue
            axes = integers(node, "axes", 1)
            if axes is None:
                if len(node.inputs) > 1 and node.inputs[1] is not None:
                    yield self.decline("the axes are computed at run time", node)
                continue
            rank = scope.rank(node.inputs[0])
            if rank is None:
                yield self.decline("the rank of the input is unknown", node)
                continue
            if rank < 3 or sorted(axis % rank for axis in axes) != list(range(2, rank)):
                continue
            if not attribute_int(node, "keepdims", 1):
                continue
            dtype = node.inputs[0].dtype or node.outputs[0].dtype
            if dtype not in _RUNNABLE:
                kind = "unknown type" if dtype is None else f"type {dtype.name.lower()}"
                pool = _POOLS[node.op_type]
                yield self.decline(f"onnxruntime has no {pool} of {kind}", node)
                continue
            context = _context(node, scope) if self.gated else ()
            yield Proposal(
                self.name,
                (*context, node),
                partial(_replace, scope, node),
                {"operator": _POOLS[node.op_type]},
                gated=self.gated,
            )


def _context(node: ir.Node, scope: Scope) -> tuple[ir.Node, ...]:
    """The convolution (or pooling) whose result is reduced, and the nodes in between; or nothing."""
    found: list[ir.Node] = []
    value = node.inputs[0]
    while value is not None and len(found) <= _MOST_BETWEEN:
        before = value.producer()
        if before is None or before.graph is not scope.graph:
            return ()
        found.append(before)
        if is_op(before, *_BLOCKED):
            return tuple(reversed(found))
        if not is_op(before, *_BETWEEN):
            return ()
        value = next((v for v in before.inputs if v is not None and constant(v) is None), None)
    return ()


def _replace(scope: Scope, node: ir.Node) -> None:
    change = Edit(scope, RecognisePooling.name)
    result = node.outputs[0]
    hint = result.name or "pooled"
    new = change.node(_POOLS[node.op_type], [node.inputs[0]], hint=hint, name=node.name)
    change.commit((node,), {result: new})
