"""Values that are constant whatever is fed, resolved lazily and without copying.

Weights hide behind Constant nodes, Identity, Cast, Unsqueeze, Expand or ConstantOfShape. A value
whose elements are all one number is represented as a broadcast scalar (all strides 0), however
large it is, so that a 0.3 kB file that generates 500 MB of weights costs nothing to look at.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

Array = np.ndarray[Any, Any]
_MAX_DEPTH = 16


def is_overridable(value: ir.Value) -> bool:
    """Whether a caller may feed this value: an initializer that is also listed as an input."""
    return value.is_graph_input()


def constant(value: ir.Value | None) -> Array | None:
    """The array a value always has, or None if it depends on an input. Read-only, do not write."""
    return _resolve(value, 0)


def splat(number: Any, shape: tuple[int, ...]) -> Array:
    """An array of one repeated element that takes no memory."""
    return np.broadcast_to(np.asarray(number), shape)


def is_splat(array: Array) -> bool:
    """Whether the array is a broadcast scalar (see `splat`) with more than one element."""
    return array.size > 1 and not any(array.strides)


def reshaped(array: Array, shape: tuple[int, ...]) -> Array:
    """The array in another shape; a splat stays one."""
    return splat(array.flat[0], shape) if is_splat(array) else array.reshape(shape)


def stored(value: ir.Value | None) -> int:
    """Bytes a file keeps of a constant: little of a generated one, a quarter of int8 behind a Cast."""
    if value is None:
        return 0
    if value.const_value is not None:
        return int(value.const_value.nbytes)
    node = value.producer()
    if node is None:
        return 0
    tensor = node.attributes.get("value") if node.op_type == "Constant" else None
    return sum(map(stored, node.inputs)) if tensor is None else int(tensor.as_tensor().nbytes)


def _resolve(value: ir.Value | None, depth: int) -> Array | None:
    if value is None or depth > _MAX_DEPTH or is_overridable(value):
        return None
    if value.is_initializer():
        return None if value.const_value is None else _numpy(value.const_value)
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Constant":
        return _constant_node(node)
    evaluate = _EVALUATORS.get(node.op_type)
    if evaluate is None:
        return None
    inputs = [_resolve(v, depth + 1) for v in node.inputs if v is not None]
    known = [array for array in inputs if array is not None]
    if len(known) != len(node.inputs):
        return None
    return evaluate(node, known)


def _numpy(tensor: ir.TensorProtocol) -> Array | None:
    return None if tensor.dtype == ir.DataType.STRING else np.asarray(tensor.numpy())


def _constant_node(node: ir.Node) -> Array | None:
    tensor = node.attributes.get("value")
    if tensor is not None:
        return None if tensor.is_ref() else _numpy(tensor.value)
    for name, dtype in _CONSTANT_ATTRIBUTES.items():
        attribute = node.attributes.get(name)
        if attribute is not None and not attribute.is_ref():
            return np.asarray(attribute.value, dtype)
    return None


_CONSTANT_ATTRIBUTES: dict[str, type] = {
    "value_int": np.int64,
    "value_ints": np.int64,
    "value_float": np.float32,
    "value_floats": np.float32,
}


def _axes(node: ir.Node, inputs: list[Array]) -> list[int] | None:
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return list(attribute.as_ints())
    return [int(axis) for axis in inputs[1].ravel()] if len(inputs) > 1 else None


def _identity(_: ir.Node, inputs: list[Array]) -> Array:
    return inputs[0]


def _cast(node: ir.Node, inputs: list[Array]) -> Array | None:
    attribute = node.attributes.get("to")
    if attribute is None or attribute.is_ref():
        return None
    target = ir.DataType(attribute.as_int())
    source = inputs[0].dtype  # bfloat16 is of kind V
    if target == ir.DataType.STRING or not (source.kind in "fiub" or "float" in str(source)):
        return None
    return _converted(inputs[0], target.numpy())


def _cast_like(_: ir.Node, inputs: list[Array]) -> Array:
    return _converted(inputs[0], inputs[1].dtype)


def _converted(array: Array, dtype: Any) -> Array:
    if is_splat(array):
        return splat(array.flat[0].astype(dtype), array.shape)
    return array.astype(dtype, copy=False)


def _unsqueeze(node: ir.Node, inputs: list[Array]) -> Array | None:
    axes = _axes(node, inputs)
    if axes is None:
        return None
    rank = inputs[0].ndim + len(axes)
    added = {axis % rank for axis in axes}
    sizes = iter(inputs[0].shape)
    return reshaped(inputs[0], tuple(1 if i in added else next(sizes) for i in range(rank)))


def _squeeze(node: ir.Node, inputs: list[Array]) -> Array:
    axes = _axes(node, inputs)
    rank = inputs[0].ndim
    dropped = {a % rank for a in axes} if axes is not None else set(range(rank))
    keep = [n for i, n in enumerate(inputs[0].shape) if not (i in dropped and n == 1)]
    return reshaped(inputs[0], tuple(keep))


def _reshape(node: ir.Node, inputs: list[Array]) -> Array | None:
    zero = node.attributes.get("allowzero")
    if len(inputs) != 2 or (zero is not None and zero.as_int()):
        return None
    array, wanted = inputs[0], [int(n) for n in inputs[1].ravel()]
    shape = [array.shape[i] if n == 0 and i < array.ndim else n for i, n in enumerate(wanted)]
    if -1 in shape:
        known = math.prod(n for n in shape if n != -1)
        if known == 0:
            return None
        shape[shape.index(-1)] = array.size // known
    return reshaped(array, tuple(shape)) if math.prod(shape) == array.size else None


def _constant_of_shape(node: ir.Node, inputs: list[Array]) -> Array:
    attribute = node.attributes.get("value")
    fill = np.float32(0) if attribute is None else attribute.value.numpy().reshape(-1)[0]
    return splat(fill, tuple(int(n) for n in inputs[0].ravel()))


def _expand(_: ir.Node, inputs: list[Array]) -> Array:
    shape = np.broadcast_shapes(inputs[0].shape, tuple(int(n) for n in inputs[1].ravel()))
    return np.broadcast_to(inputs[0], shape)


def _shape(node: ir.Node, inputs: list[Array]) -> Array | None:
    return None if node.attributes else np.asarray(inputs[0].shape, np.int64)


_EVALUATORS: dict[str, Callable[[ir.Node, list[Array]], Array | None]] = {
    "Identity": _identity,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Shape": _shape,
}
