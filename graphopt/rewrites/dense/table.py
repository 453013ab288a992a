"""Which rule an operator goes by. What is not here is not known to work on a map of any size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from graphopt.rewrites.dense import channels, elementwise, linear, local, pooling, reshaping
from graphopt.rewrites.dense.states import Ruling, Site

Rule = Callable[[Site], Ruling]

_UNARY = (
    "Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos",
    "Cosh", "Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity",
    "IsInf", "IsNaN", "LeakyRelu", "Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round",
    "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign", "Sqrt", "Swish",
    "Tan", "Tanh", "ThresholdedRelu",
)  # fmt: skip
_NARY = (
    "Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean",
    "Min", "Mod", "Mul", "Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor",
)  # fmt: skip
_REDUCE = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(_UNARY, elementwise.unary),
    **dict.fromkeys(_NARY, elementwise.nary),
    **dict.fromkeys(_REDUCE, pooling.reduced),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), elementwise.quantized),
    **dict.fromkeys(("InstanceNormalization", "GroupNormalization"), elementwise.over_the_picture),
    "BatchNormalization": elementwise.normalized,
    "LRN": elementwise.across_channels,
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool"), pooling.global_pool),
    **dict.fromkeys(("AveragePool", "MaxPool", "LpPool"), local.windowed),
    "Conv": local.convolved,
    "ConvTranspose": local.transposed,
    "DeformConv": local.deformed,
    "Pad": local.padded,
    "Slice": local.sliced,
    **dict.fromkeys(("DepthToSpace", "SpaceToDepth"), local.rearranged),
    **dict.fromkeys(("Resize", "Upsample"), local.resized),
    **dict.fromkeys(("Flatten", "Reshape", "Squeeze", "Unsqueeze"), reshaping.reshaped),
    "Transpose": reshaping.transposed,
    **dict.fromkeys(("Gemm", "MatMul"), linear.connected),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), channels.softmax),
    **dict.fromkeys(("ArgMax", "ArgMin"), channels.class_of),
    **dict.fromkeys(("TopK", "LpNormalization"), partial(channels.along, default=-1)),
    "Split": partial(channels.along, default=0),
    "LayerNormalization": channels.layer_norm,
    "Concat": channels.concatenated,
    "Gather": channels.gathered,
}
