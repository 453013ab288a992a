"""Fold a Transpose before a fully connected layer into the order of the weight's rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, is_splat, reshaped
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, attribute_int, follower, is_op
from graphopt.graph.views import LinearView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.cleanup.axes import Order, integers, order_of

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FoldTransposeIntoFc(ExactRewrite):
    """Transpose -> Flatten | Reshape to [N, K] -> Gemm | MatMul  ==>  Flatten -> Gemm, rows permuted.

        W'[(c H + h) W + w, o] = W_fc[(h W + w) C + c, o]          for the order N, H, W, C

    The head of an NHWC export. For every order that leaves the batch in front; all layers that read
    the flattened map are changed.
    Declines when the map's size is not fixed, the map or the flattened value is read by something else
    too, a weight is not constant, the batch moves.
    """

    name = "fold-transpose-into-fc"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per Transpose whose result is flattened and multiplied."""
        for node in list(scope.graph):
            if node.graph is not scope.graph:
                continue
            order, flatten = order_of(node, scope), None
            for use in node.outputs[0].uses():
                if is_op(use.node, "Flatten", "Reshape") and layers_on(use.node):
                    flatten = use.node
            if order is None or flatten is None or len(order) < 3:
                continue
            reason = _refusal(scope, node, order, flatten)
            if reason is not None:
                yield self.decline(reason, node, flatten)
                continue
            layers = layers_on(flatten)
            yield Proposal(
                self.name,
                (node, flatten, *layers),
                partial(_fold, scope, node, order, flatten, layers),
            )


def layers_on(flatten: ir.Node) -> list[ir.Node]:
    """The fully connected layers that read the flattened value as their input."""
    value = flatten.outputs[0]
    return [use.node for use in value.uses() if is_op(use.node, "Gemm", "MatMul") and use.idx == 0]


def is_flattened_for_layers(value: ir.Value) -> bool:
    """Whether all that reads a value flattens it for fully connected layers."""
    readers = [use.node for use in value.uses()]
    flat = all(is_op(node, "Flatten", "Reshape") and layers_on(node) for node in readers)
    return bool(readers) and flat and not value.is_graph_output()


def _refusal(scope: Scope, node: ir.Node, order: Order, flatten: ir.Node) -> str | None:
    if follower(scope, node) is not flatten:
        return "the transposed map is needed elsewhere too"
    value, layers = flatten.outputs[0], layers_on(flatten)
    if value.is_graph_output() or len(layers) != len(value.uses()):
        return "the flattened map is needed elsewhere too"
    if any(layer.graph is not scope.graph for layer in layers):
        return "a layer stands inside a body"
    if order[0] != 0:
        return "the batch is not in front"
    sizes = [scope.fixed_dim(node.outputs[0], axis) for axis in range(1, len(order))]
    known = [size for size in sizes if size is not None]
    if len(known) != len(sizes):
        return "the size of the map is not fixed"
    if scope.rank(value) != 2 or not _keeps_target(flatten, order):
        return "it is not flattened to [N, K] by a constant target"
    for layer in layers:
        view = LinearView.of(layer)
        if isinstance(view, str):
            return view
        if view.weight.shape[0] != math.prod(known):
            return "the flattening does not keep the map of a sample together"
    return None


def _keeps_target(flatten: ir.Node, order: Order) -> bool:
    """Whether the node says the same of the map in its original order."""
    if is_op(flatten, "Flatten"):
        return True  # the length of the rows says that it is the same as axis = 1
    target = integers(flatten, "shape", 1)
    if target is None or len(target) != 2:
        return False
    copied = [axis for axis, size in enumerate(target) if size == 0]
    literal = attribute_int(flatten, "allowzero", 0) == 1
    return not copied or (not literal and all(order[axis] == axis for axis in copied))


def _fold(
    scope: Scope, node: ir.Node, order: Order, flatten: ir.Node, layers: list[ir.Node]
) -> None:
    change = Edit(scope, FoldTransposeIntoFc.name)
    sizes = [scope.fixed_dim(node.outputs[0], axis) or 1 for axis in range(1, len(order))]
    axis = {"axis": 1} if is_op(flatten, "Flatten") else {}
    flat = change.like(flatten, [node.inputs[0], *flatten.inputs[1:]], attributes=axis)
    outputs: dict[ir.Value, ir.Value] = {}
    for layer in layers:
        weight = constant(layer.inputs[1])
        assert weight is not None
        operand = layer.inputs[1]
        if not is_splat(weight):
            transposed = bool(attribute_int(layer, "transB", 0))
            rows = permuted_rows(weight.T if transposed else weight, sizes, order)
            hint = f"{layer.outputs[0].name or layer.op_type}_weight"
            operand = change.constant(rows.T if transposed else rows, hint)
        outputs[layer.outputs[0]] = change.like(layer, [flat, operand, *layer.inputs[2:]])
    ordered = sorted(outputs, key=lambda value: value.is_graph_output())
    change.commit((node, flatten, *layers), {value: outputs[value] for value in ordered})


def permuted_rows(weight: Array, sizes: list[int], order: Order) -> Array:
    """The rows of weight [K, O] for Flatten(u) instead of Flatten(Transpose(u, order)).

    sizes: of the transposed map, without the batch; their product is K.
    """
    back = [order.index(axis) - 1 for axis in range(1, len(order))]
    grid = reshaped(weight, (*sizes, weight.shape[1]))
    return reshaped(np.transpose(grid, (*back, len(sizes))), weight.shape)
