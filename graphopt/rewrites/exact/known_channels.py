"""Values whose channels are known numbers whatever is fed, though nodes still compute them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, is_splat
from graphopt.graph.scope import Scope, attribute_int, is_op
from graphopt.graph.views import CONV_OPS, ConvView
from graphopt.rewrites.exact.fuse_affine import AFFINE_OPS, Affine

Array = np.ndarray[Any, Any]

_DEEPEST = 16

_POINTWISE: dict[str, Callable[[Array], Array]] = {
    "Identity": lambda x: x,
    "Relu": lambda x: np.maximum(x, 0.0),
    "Sigmoid": lambda x: 0.5 + 0.5 * np.tanh(0.5 * x),
    "Tanh": np.tanh,
}


def known_channels(value: ir.Value | None, scope: Scope, depth: int = 0) -> Array | None:
    """The number that fills every channel of a value [N, C, ...], float64 [C]; None if none does.

    A constant that varies along its channels at most, the bias of a convolution whose weight is zero,
    and what Split, Slice, Concat, constant factors and addends and a few activations make of such.
    """
    if value is None or depth > _DEEPEST:
        return None
    array = constant(value)
    if array is not None:
        return _filled(array)
    node = value.producer()
    if node is None:
        return None
    if is_op(node, *CONV_OPS):
        return _bias_alone(node, scope)
    if is_op(node, "Concat"):
        parts = [known_channels(part, scope, depth + 1) for part in node.inputs]
        known = [part for part in parts if part is not None]
        whole = _along_channels(node, scope) and len(known) == len(parts)
        return np.concatenate(known) if whole else None
    if is_op(node, *AFFINE_OPS):
        return _affine(node, scope, depth)
    if not is_op(node, "Split", "Slice", *_POINTWISE):
        return None
    source = known_channels(node.inputs[0], scope, depth + 1)
    if source is None:
        return None
    if is_op(node, "Split"):
        return _part(node, value, source, scope)
    if is_op(node, "Slice"):
        return _slice(node, source, scope)
    return _POINTWISE[node.op_type](source)


def _filled(array: Array) -> Array | None:
    if array.ndim < 2 or array.size == 0 or array.dtype.kind not in "fV":
        return None
    if is_splat(array):
        return np.full(array.shape[1], float(array.flat[0]))
    channels = np.moveaxis(array, 1, 0).reshape(array.shape[1], -1)
    return channels[:, 0].astype(np.float64) if np.all(channels == channels[:, :1]) else None


def _bias_alone(node: ir.Node, scope: Scope) -> Array | None:
    view = ConvView.of(node, scope)
    if isinstance(view, str) or np.any(
        view.weight.flat[0] if is_splat(view.weight) else view.weight
    ):
        return None
    return np.zeros(view.out_channels) if view.bias is None else view.bias.astype(np.float64)


def _affine(node: ir.Node, scope: Scope, depth: int) -> Array | None:
    rank = scope.rank(node.outputs[0])
    for source in node.inputs:
        known = None if constant(source) is not None else known_channels(source, scope, depth + 1)
        if source is None or known is None or rank is None:
            continue
        affine = Affine.of(node, source, len(known), 1, rank)
        return None if isinstance(affine, str) else affine.scale * known + affine.shift
    return None


def _along_channels(node: ir.Node, scope: Scope) -> bool:
    """Whether the axis of a Split or Concat is that of the channels."""
    axis, rank = attribute_int(node, "axis", 0), scope.rank(node.inputs[0])
    return axis == 1 or (rank is not None and axis + rank == 1)


def _part(node: ir.Node, value: ir.Value, source: Array, scope: Scope) -> Array | None:
    """An output of a Split: of given sizes, or of equal ones with the last the smallest."""
    if not _along_channels(node, scope):
        return None
    parts = len(node.outputs)
    sizes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if sizes is None:
        if len(node.inputs) > 1 and node.inputs[1] is not None:
            return None
        step = -(-len(source) // parts)
        sizes = np.full(parts, step)
    index = list(node.outputs).index(value)
    begin = int(np.sum(sizes[:index]))
    return source[begin : begin + int(sizes[index])]


def _slice(node: ir.Node, source: Array, scope: Scope) -> Array | None:
    """A Slice along the channels alone."""
    given = [constant(value) for value in node.inputs[1:]]
    if any(array is None or array.size != 1 for array in given) or not 3 <= len(given) <= 4:
        return None
    start, end, axis, step = [int(a.flat[0]) for a in given if a is not None] + [1] * (
        4 - len(given)
    )
    rank = scope.rank(node.inputs[0])
    if step < 1 or not (axis == 1 or (rank is not None and axis + rank == 1)):
        return None
    return source[start:end:step]
