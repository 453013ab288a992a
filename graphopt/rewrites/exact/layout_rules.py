"""How operators are written for another layout of their operands: one rule each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, reshaped
from graphopt.graph.scope import Scope, attribute_int, attribute_string, is_op
from graphopt.rewrites.cleanup.axes import (
    Order,
    composed,
    in_order,
    integers,
    is_given,
    is_identity,
    long_axes,
    operand,
    order_of,
)

Array = np.ndarray[Any, Any]
AttributeValue = int | float | str | Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class Flip:
    """An operator for operands u instead of x = Transpose(u, order).

    operands: positions of the inputs that become u. constants: new constants by position.
    attributes: those that change. moves: whether the output y becomes z with y = Transpose(z,
    order); otherwise it stays what it was, the Transpose is swallowed. op_type: of the operator
    that takes its place, if it is another one.
    """

    operands: tuple[int, ...] = (0,)
    constants: Mapping[int, Array] = field(default_factory=dict)
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)
    moves: bool = True
    op_type: str | None = None


def unary(_: ir.Node, __: Scope, ___: Order) -> Flip:
    """Elementwise of one operand."""
    return Flip()


def nary(node: ir.Node, scope: Scope, order: Order) -> Flip | None:
    """Broadcasting operators: constants are brought to full rank, permuted, and cut again."""
    operands, constants = [], {}
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is None:
            if scope.rank(value) == 0 or (scope.rank(value) == 1 and _is_one(value, scope)):
                continue
            operands.append(index)
        elif array.ndim > len(order):
            return None
        elif array.size != 1:
            constants[index] = _broadcast(array, order)
    return Flip(tuple(operands), constants)


def _is_one(value: ir.Value | None, scope: Scope) -> bool:
    return scope.fixed_dim(value, 0) == 1


def _broadcast(array: Array, order: Order) -> Array:
    """A constant that broadcasts against Transpose(u, order), for u. Leading ones are left out."""
    full = reshaped(array, (1,) * (len(order) - array.ndim) + array.shape)
    moved = np.transpose(full, np.argsort(order))
    leading = next((i for i, size in enumerate(moved.shape) if size != 1), moved.ndim)
    return reshaped(moved, moved.shape[leading:])


def concat(node: ir.Node, _: Scope, order: Order) -> Flip | None:
    """Along the axis that the operands have it at."""
    operands, constants = [], {}
    for index, value in enumerate(node.inputs):
        array = constant(value)
        if array is None:
            operands.append(index)
        elif array.ndim != len(order):
            return None
        else:
            constants[index] = np.transpose(array, np.argsort(order))
    axis = node.attributes.get("axis")
    if axis is None:
        return None
    return Flip(tuple(operands), constants, {"axis": _mapped(axis.as_int(), order)})


def split(node: ir.Node, _: Scope, order: Order) -> Flip:
    """Along the axis that the operand has it at."""
    return Flip(attributes={"axis": _mapped(attribute_int(node, "axis", 0), order)})


def _mapped(axis: int, order: Order) -> int:
    return order[axis % len(order)]


def softmax(node: ir.Node, scope: Scope, order: Order) -> Flip | None:
    """Along one axis; before opset 13 over all from one on."""
    if scope.opset < 13:  # it flattens the axes from `axis` on
        return None
    return Flip(attributes={"axis": _mapped(attribute_int(node, "axis", -1), order)})


def quantize(node: ir.Node, scope: Scope, order: Order) -> Flip | None:
    """With one scale, or one a channel."""
    rank = scope.rank(node.inputs[1])
    if attribute_int(node, "block_size", 0) or rank is None or rank > 1:
        return None
    if rank == 0 or _is_one(node.inputs[1], scope):
        return Flip()
    if scope.opset < 13:
        return None
    return Flip(attributes={"axis": _mapped(attribute_int(node, "axis", 1), order)})


def pad(node: ir.Node, _: Scope, order: Order) -> Flip | None:
    """Pads, or the axes they are for, permuted."""
    pads = integers(node, "pads", 1)
    if pads is None:
        return None
    if is_given(node, "axes", 3):
        axes = integers(node, "axes", 3)
        return None if axes is None else _with_integers(node, "axes", 3, _all(axes, order))
    rank = len(order)
    if len(pads) != 2 * rank:
        return None
    moved = [*_permuted(pads[:rank], order), *_permuted(pads[rank:], order)]
    return _with_integers(node, "pads", 1, moved)


def _all(axes: Sequence[int], order: Order) -> list[int]:
    return [_mapped(axis, order) for axis in axes]


def _permuted(numbers: Sequence[int], order: Order) -> list[int]:
    """One number an axis of Transpose(u, order), as one an axis of u."""
    return [numbers[i] for i in np.argsort(order)]


def _with_integers(
    node: ir.Node, name: str, index: int, values: Sequence[int], *, moves: bool = True
) -> Flip:
    """The flip that changes integers where the node has them: in an attribute or in an input."""
    if name in node.attributes:
        return Flip(attributes={name: list(values)}, moves=moves)
    return Flip(constants={index: np.asarray(values, np.int64)}, moves=moves)


def reduction(node: ir.Node, _: Scope, order: Order) -> Flip | None:
    """Over the same axes; without keepdims only if the rest stays in order."""
    keeps = attribute_int(node, "keepdims", 1) == 1
    if not is_given(node, "axes", 1):
        return Flip(moves=keeps or attribute_int(node, "noop_with_empty_axes", 0) == 1)
    axes = integers(node, "axes", 1)
    if not axes:  # unknown, or empty: what that means depends on the operator set
        return None
    if not keeps and not _rest_in_order(axes, order):
        return None
    return _with_integers(node, "axes", 1, sorted(_all(axes, order)), moves=keeps)


def arg_extremum(node: ir.Node, _: Scope, order: Order) -> Flip | None:
    """Like a reduction."""
    axis, keeps = attribute_int(node, "axis", 0), attribute_int(node, "keepdims", 1) == 1
    if not keeps and not _rest_in_order([axis], order):
        return None
    return Flip(attributes={"axis": _mapped(axis, order)}, moves=keeps)


def _rest_in_order(axes: Sequence[int], order: Order) -> bool:
    """Whether the axes that are left stand in one order before and after the Transpose."""
    gone = {axis % len(order) for axis in axes}
    return in_order([order[axis] for axis in range(len(order)) if axis not in gone])


def squeeze(node: ir.Node, _: Scope, order: Order) -> Flip | None:
    """Swallows the Transpose if the axes that are left stay in order."""
    axes = integers(node, "axes", 1)
    if axes is None or not _rest_in_order(axes, order):
        return None
    return _with_integers(node, "axes", 1, sorted(_all(axes, order)), moves=False)


def transpose(node: ir.Node, scope: Scope, order: Order) -> Flip | None:
    """Swallows the Transpose."""
    after = order_of(node, scope)
    if after is None or len(after) != len(order) or is_identity(composed(order, after)):
        return None  # an inverse Transpose is no operator to be moved through: it goes
    return Flip(attributes={"perm": list(composed(order, after))}, moves=False)


def reshape(node: ir.Node, scope: Scope, order: Order) -> Flip | None:
    """A Reshape of a value whose Transpose only moves axes of length one: the data stay in order."""
    target = constant(operand(node, 1))
    axes = long_axes(scope, node.inputs[0], len(order))
    if target is None or not in_order([order[axis] for axis in axes]):
        return None
    copied = [i for i, size in enumerate(target.reshape(-1)) if size == 0]
    if any(i >= len(order) or order[i] != i for i in copied):
        return None
    return Flip(moves=False)


def flatten(node: ir.Node, scope: Scope, order: Order) -> Flip | None:
    """A Flatten that reads the data in the same order."""
    axes = long_axes(scope, node.inputs[0], len(order))
    if not in_order([order[axis] for axis in axes]):
        return None
    axis = attribute_int(node, "axis", 1)
    axis = axis + len(order) if axis < 0 else axis
    before = [order[a] for a in axes if a < axis]
    return Flip(attributes={"axis": before[-1] + 1 if before else 0}, moves=False)


def sliced(node: ir.Node, scope: Scope, order: Order) -> Flip | None:
    """Over the same axes."""
    by_input = scope.opset >= 10
    if is_given(node, "axes", 3):
        axes = integers(node, "axes", 3)
    else:
        starts = integers(node, "starts", 1)
        axes = None if starts is None else tuple(range(len(starts)))
    if axes is None:
        return None
    moved = _all(axes, order)
    if by_input:
        return Flip(constants={3: np.asarray(moved, np.int64)})
    return Flip(attributes={"axes": moved})


def resize(node: ir.Node, scope: Scope, order: Order) -> Flip | None:
    """Scales or sizes permuted; batch and channels must stay unscaled in the first two axes."""
    mode = attribute_string(node, "coordinate_transformation_mode", "half_pixel")
    if mode == "tf_crop_and_resize" or not _first_two_unscaled(node, scope, order):
        return None
    if is_op(node, "Upsample"):
        indices: tuple[int, ...] = (1,)
    else:
        indices = (1,) if scope.opset < 11 else (2, 3)
    if "scales" in node.attributes:
        scales = node.attributes["scales"].as_floats()
        if len(scales) != len(order):
            return None
        return Flip(attributes={"scales": [scales[i] for i in np.argsort(order)]})
    if "axes" in node.attributes:
        return Flip(attributes={"axes": _all(node.attributes["axes"].as_ints(), order)})
    constants = {}
    for index in indices:
        value = operand(node, index)
        array = constant(value)
        if value is None or (array is not None and array.size == 0):
            continue
        if array is None or array.size != len(order):
            return None
        constants[index] = array.reshape(-1)[np.argsort(order)]
    return Flip(constants=constants)


def _first_two_unscaled(node: ir.Node, scope: Scope, order: Order) -> bool:
    """All that onnxruntime can be relied on to interpolate is [N, C, ...] with N and C as they are."""
    before, after = scope.shape(node.inputs[0]), scope.shape(node.outputs[0])
    if before is None or after is None or len(order) < 3 or len(before) != len(order):
        return False
    return all(before[order.index(axis)] == after[order.index(axis)] for axis in (0, 1))


def matmul(node: ir.Node, _: Scope, order: Order) -> Flip | None:
    """x [N, ..., C] @ W [C, O] is a convolution of [N, C, ...] with W^T [O, C, 1, ...]."""
    weight, rank = constant(operand(node, 1)), len(order)
    if weight is None or weight.ndim != 2 or weight.dtype.name not in ("float32", "float16"):
        return None
    if order != (0, *range(2, rank), 1) or not 3 <= rank <= 5:
        return None
    spatial = (1,) * (rank - 2)
    kernel = reshaped(weight.T, (*weight.shape[::-1], *spatial))
    return Flip((0,), {1: kernel}, {"kernel_shape": list(spatial)}, op_type="Conv")
