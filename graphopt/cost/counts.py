"""Counting what a model costs: multiply-accumulates, parameters, bytes, nodes.

The one definition that `audit`, the report and the planner share.

MACs count convolutions and matrix products only (the convention of the literature: one
multiplication and one addition are one MAC); normalization and activations count as nothing, nor
do the additions of a bias or the sampling of a deformable convolution. Padding is counted like any
other input.
Parameters are the elements of constant tensors of float or 8-bit and smaller integer type: weights,
biases, the four vectors of a batch normalization. Papers mostly print the weights alone; a
convolution's bias is O more. Shape vectors and indices are no parameters, but their bytes count. A
tensor that two nodes share is counted once in a model, and with each of them in a list of layers.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

import onnx_ir as ir

from graphopt.graph.constants import constant, stored
from graphopt.graph.scope import all_nodes, attribute_int, is_op
from graphopt.graph.shapes import TensorInfo

_NO_PARAMETER = {
    ir.DataType.INT16,
    ir.DataType.INT32,
    ir.DataType.INT64,
    ir.DataType.UINT16,
    ir.DataType.UINT32,
    ir.DataType.UINT64,
    ir.DataType.BOOL,
    ir.DataType.STRING,
}


def macs(node: ir.Node, infos: Mapping[str, TensorInfo]) -> int:
    """Multiply-accumulates of one node; 0 for operators that have none or of unknown shape."""
    if is_op(node, "Conv", "ConvInteger"):
        out, weight = _shape(node.outputs[0], infos), _shape(node.inputs[1], infos)
        if out is None or weight is None:
            return 0
        return math.prod(out) * math.prod(weight[1:])
    if is_op(node, "QLinearConv"):
        out, weight = _shape(node.outputs[0], infos), _shape(node.inputs[3], infos)
        return 0 if out is None or weight is None else math.prod(out) * math.prod(weight[1:])
    if is_op(node, "ConvTranspose"):
        source, weight = _shape(node.inputs[0], infos), _shape(node.inputs[1], infos)
        return 0 if source is None or weight is None else math.prod(source) * math.prod(weight[1:])
    if is_op(node, "DeformConv"):
        out, weight = _shape(node.outputs[0], infos), _shape(node.inputs[1], infos)
        return 0 if out is None or weight is None else math.prod(out) * math.prod(weight[1:])
    if is_op(node, "Gemm"):
        out, a = _shape(node.outputs[0], infos), _shape(node.inputs[0], infos)
        if out is None or a is None:
            return 0
        return math.prod(out) * (a[0] if attribute_int(node, "transA", 0) else a[-1])
    if is_op(node, "MatMul", "MatMulInteger", "QLinearMatMul"):
        out, a = _shape(node.outputs[0], infos), _shape(node.inputs[0], infos)
        return 0 if out is None or not a else math.prod(out) * a[-1]
    return 0


def _shape(value: ir.Value | None, infos: Mapping[str, TensorInfo]) -> tuple[int, ...] | None:
    if value is None:
        return None
    info = infos.get(value.name or "")
    if info is not None:
        return info.shape
    array = constant(value)
    return None if array is None else tuple(array.shape)


def constant_tensor(node: ir.Node) -> ir.TensorProtocol | None:
    """The tensor that a Constant node keeps; None of any other node."""
    attribute = node.attributes.get("value") if node.op_type == "Constant" else None
    tensor: ir.TensorProtocol | None = None if attribute is None else attribute.value
    return tensor


def parameters(tensor: ir.TensorProtocol) -> int:
    """Elements of a tensor that count as parameters."""
    return 0 if tensor.dtype in _NO_PARAMETER else int(tensor.size)


def node_parameters(node: ir.Node) -> int:
    """Parameters that one node reads: its weight, its bias."""
    arrays = (constant(value) for value in node.inputs)
    return sum(
        array.size
        for array in arrays
        if array is not None and ir.DataType.from_numpy(array.dtype) not in _NO_PARAMETER
    )


def node_weight_bytes(node: ir.Node) -> int:
    """Bytes a file keeps of the constants that one node reads."""
    return sum(stored(value) for value in node.inputs if constant(value) is not None)


def operators(model: ir.Model) -> dict[str, int]:
    """Nodes by operator type, most frequent first, bodies included."""
    counts = Counter(node.op_type for node in all_nodes(model))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
