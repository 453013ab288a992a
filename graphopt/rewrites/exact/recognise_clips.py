"""Recognise Relu and Clip where they are written with Max and Min."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, follower, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.interval import RELU, Interval, clip, interval_of
from graphopt.rewrites.exact.recognised import RUNNABLE

_FLOATS = (*RUNNABLE, ir.DataType.DOUBLE)
_RELU_INTEGERS = (ir.DataType.INT8, ir.DataType.INT32)
_CLIP_INTEGERS = (
    ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.UINT32,
    ir.DataType.INT64, ir.DataType.UINT64,
)  # fmt: skip
"""Integers that onnxruntime has kernels for."""


@dataclass(frozen=True)
class _Bounded:
    """A node as clip(source, interval)."""

    node: ir.Node
    source: ir.Value
    interval: Interval
    dtype: ir.DataType | None


@dataclass(frozen=True)
class RecogniseClips(ExactRewrite):
    """Max(x, 0)  ==>  Relu.          Min(Max(x, a), b) and Min(Relu(x), b)  ==>  Clip.

        Max(x, a) = clip(x, a, inf),   Min(x, b) = clip(x, -inf, b),   composed as by merge-activations

    An empty interval is no trouble: Min(Max(x, a), b) with a > b is b, and so is Clip(x, b, b).
    A Max or Min by another constant that stands alone stays: Clip would be no faster. The same for
    every number; a NaN may become the bound.
    Declines when the constant is no single number (one per channel), and for element types that
    the opset or onnxruntime has no Relu or Clip of.
    """

    name = "recognise-clips"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per Max or Min of a value and a constant, or per pair with one."""
        if scope.opset < 7:
            return
        for node in scope.graph:
            if is_op(node, "Max", "Min", "Relu", "Clip"):
                found = self._clip(node, scope)
                if found is not None:
                    yield found

    def _clip(self, node: ir.Node, scope: Scope) -> Finding | None:
        """A node that bounds its input, alone or with the one behind it."""
        first = _bounded(node, scope)
        if isinstance(first, str):
            return self.decline(first, node)
        if first is None:
            return None
        nodes: tuple[ir.Node, ...] = (node,)
        interval, dtype = first.interval, first.dtype
        after = follower(scope, node)
        second = None if after is None else _bounded(after, scope)
        if isinstance(second, _Bounded) and (
            is_op(node, "Max", "Min") or is_op(second.node, "Max", "Min")
        ):
            nodes = (node, second.node)
            interval, dtype = interval.then(second.interval), dtype or second.dtype
        elif not is_op(node, "Max") or interval != RELU:
            return None
        if dtype is None:
            return self.decline("the element type is unknown", *nodes)
        becomes = _becomes(interval, dtype, scope)
        if becomes is None:
            of = f"{dtype.name.lower()} in opset {scope.opset}"
            return self.decline(f"onnxruntime has no operator for it of type {of}", *nodes)
        edit = partial(_replace, scope, nodes, replace(first, interval=interval, dtype=dtype))
        return Proposal(self.name, nodes, edit, {"operator": becomes})


def _bounded(node: ir.Node, scope: Scope) -> _Bounded | str | None:
    """A Max or Min with a constant, a Relu or a Clip; a reason where the constant is of no use."""
    source = node.inputs[0] if node.inputs else None
    if is_op(node, "Relu", "Clip"):
        interval = interval_of(node, scope)
        if source is None or not isinstance(interval, Interval):
            return None
        return _Bounded(node, source, interval, source.dtype or node.outputs[0].dtype)
    if not is_op(node, "Max", "Min") or len(node.inputs) != 2:
        return None
    arrays = [constant(value) for value in node.inputs]
    if (arrays[0] is None) == (arrays[1] is None):
        return None
    position = 0 if arrays[0] is None else 1
    source, array = node.inputs[position], arrays[1 - position]
    assert source is not None
    assert array is not None
    if array.size != 1:
        return "the constant is not one number"
    rank = scope.rank(source)
    if array.ndim > (0 if rank is None else rank):
        return "the constant gives the result more dimensions"
    bound = array.reshape(-1)[0].item()
    if math.isnan(bound):
        return "the constant is not a number"
    interval = Interval(bound, math.inf) if node.op_type == "Max" else Interval(-math.inf, bound)
    return _Bounded(node, source, interval, ir.DataType.from_numpy(array.dtype))


def _becomes(interval: Interval, dtype: ir.DataType, scope: Scope) -> str | None:
    """The operator for an interval, if the opset has it and onnxruntime runs it."""
    relu = _FLOATS if scope.opset < 14 else (*_FLOATS, *_RELU_INTEGERS)
    if interval == RELU and dtype in relu:
        return "Relu"
    clip = RUNNABLE if scope.opset < 12 else (*_FLOATS, *_CLIP_INTEGERS)
    return "Clip" if dtype in clip else None


def _replace(scope: Scope, nodes: tuple[ir.Node, ...], bounded: _Bounded) -> None:
    change = Edit(scope, RecogniseClips.name)
    result = nodes[-1].outputs[0]
    change.commit(nodes, {result: _emit(change, scope, bounded, result.name or "clip")})


def _emit(change: Edit, scope: Scope, bounded: _Bounded, hint: str) -> ir.Value:
    source, interval, dtype = bounded.source, bounded.interval, bounded.dtype
    assert dtype is not None
    if _becomes(interval, dtype, scope) == "Relu":
        return change.node("Relu", [source], hint=hint, name=bounded.node.name)
    return clip(change, scope, source, interval, dtype, bounded.node, hint)
