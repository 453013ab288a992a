"""Which operators can be written for another layout of their operands."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import Scope, is_op
from graphopt.rewrites.cleanup.axes import Order
from graphopt.rewrites.exact import layout_rules as rules
from graphopt.rewrites.exact.layout_rules import Flip

Rule = Callable[[ir.Node, Scope, Order], Flip | None]

_MOVABLE = (
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE,
    ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8,
    ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64, ir.DataType.BOOL,
)  # fmt: skip
"""Element types that runtimes have a Transpose for (not all do for 4-bit and 8-bit floats)."""

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Cast", "Ceil", "Celu",
    "Clip", "Cos", "Cosh", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish",
    "Identity", "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu",
    "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt",
    "Swish", "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_NARY = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean",
    "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCE = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

_RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, rules.unary),
    **dict.fromkeys(_NARY, rules.nary),
    **dict.fromkeys(_REDUCE, rules.reduction),
    **dict.fromkeys(("ArgMax", "ArgMin"), rules.arg_extremum),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), rules.softmax),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), rules.quantize),
    **dict.fromkeys(("Resize", "Upsample"), rules.resize),
    "Concat": rules.concat,
    "Split": rules.split,
    "Pad": rules.pad,
    "Slice": rules.sliced,
    "Squeeze": rules.squeeze,
    "Transpose": rules.transpose,
    "Reshape": rules.reshape,
    "Flatten": rules.flatten,
}


def flip_of(node: ir.Node, scope: Scope, order: Order, *, convolve: bool = False) -> Flip | None:
    """How `node` is written for the layout before Transpose(order), or None if it cannot be.

    convolve: a MatMul over the last axis may become a Conv 1x1 over the second.
    """
    rule = _RULES.get(node.op_type)
    if node.op_type == "MatMul" and convolve:
        rule = rules.matmul
    if rule is None or not is_op(node, node.op_type) or scope.opset < 7:
        return None
    if is_op(node, "Split"):
        if any(not output.name for output in node.outputs):
            return None
    elif any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return None
    if any(output.dtype not in (None, *_MOVABLE) for output in node.outputs):
        return None
    if any(attribute.is_ref() for attribute in node.attributes.values()):
        return None
    flip = rule(node, scope, order)
    if flip is None or not flip.operands:
        return None
    rank = len(order)
    for index, value in enumerate(node.inputs):
        known = None if value is None else scope.rank(value)
        if index in flip.operands:
            if known != rank:
                return None
        elif value is not None and constant(value) is None and known not in (0, 1):
            return None  # whether it is part of the layout cannot be told
    return flip
