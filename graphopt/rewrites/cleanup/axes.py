"""Shared by the layout rewrites: orders of Transposes, and integers given as attribute or as input."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.edit import FIRST_IR_WITHOUT_LISTING
from graphopt.graph.scope import Scope, attribute_ints, is_op

Order = tuple[int, ...]
"""A permutation of axes: axis i of the result is axis order[i] of the operand."""


def order_of(node: ir.Node | None, scope: Scope) -> Order | None:
    """The order of a Transpose; None for other nodes, or where the default order is unknown."""
    if node is None or not is_op(node, "Transpose"):
        return None
    order = attribute_ints(node, "perm")
    if order is not None:
        return order
    rank = scope.rank(node.inputs[0])
    return None if rank is None else tuple(range(rank))[::-1]


def inverse(order: Order) -> Order:
    """The order that undoes an order."""
    return tuple(order.index(axis) for axis in range(len(order)))


def composed(first: Order, second: Order) -> Order:
    """The order of Transpose(second) after Transpose(first)."""
    return tuple(first[axis] for axis in second)


def is_identity(order: Order) -> bool:
    """Whether an order leaves every axis where it is."""
    return order == tuple(range(len(order)))


def is_given(node: ir.Node, name: str, index: int) -> bool:
    """Whether an operand that newer operator sets made an input of an attribute is there at all."""
    return name in node.attributes or operand(node, index) is not None


def integers(node: ir.Node, name: str, index: int) -> tuple[int, ...] | None:
    """The integers of an attribute, or of the constant input that took its place; else None."""
    attribute = node.attributes.get(name)
    if attribute is not None:
        return None if attribute.is_ref() else attribute_ints(node, name)
    array = constant(operand(node, index))
    return None if array is None else tuple(int(n) for n in array.reshape(-1))


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An input, or None where it is left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def in_order(axes: Sequence[int]) -> bool:
    """Whether axes follow one another upwards."""
    return all(a < b for a, b in pairwise(axes))


def long_axes(scope: Scope, value: ir.Value | None, rank: int) -> list[int]:
    """The axes of a value that may be longer than one."""
    return [axis for axis in range(rank) if scope.fixed_dim(value, axis) != 1]


def reshape_target(
    scope: Scope,
    source: ir.Value,
    dims: Sequence[int | str | None],
    *,
    mixed: bool = False,
) -> list[int] | None:
    """What to ask a Reshape of `source` for, to get these dimensions for every input; None: nothing does.

    dims: numbers, symbols or unknown. An open one is copied from the same axis (0) or left to be
    computed (-1). Both at once (`mixed`) fail on an empty batch, so that is only for where the
    original did so too.
    """
    if any(isinstance(size, int) and size < 1 for size in dims):
        return None
    if scope.model.ir_version < FIRST_IR_WITHOUT_LISTING and scope.opset < 9:
        return None  # a Constant node would have to hold it, and has no integers yet
    target = [size if isinstance(size, int) else -1 for size in dims]
    for axis, size in enumerate(dims):
        if isinstance(size, str) and scope.dim(source, axis) == size:
            target[axis] = 0
    if target.count(-1) > 1 or (not mixed and -1 in target and 0 in target):
        return None
    return target


def dims_of(scope: Scope, value: ir.Value) -> list[int | str | None] | None:
    """All dimensions of a value as numbers or symbols; None where its rank is unknown."""
    if value.shape is None:
        return None
    return [scope.dim(value, axis) for axis in range(len(value.shape))]


def same_dims(scope: Scope, a: ir.Value, b: ir.Value) -> bool:
    """Whether two values have the same shape for every input."""
    dims = dims_of(scope, a)
    return dims is not None and None not in dims and dims == dims_of(scope, b)
