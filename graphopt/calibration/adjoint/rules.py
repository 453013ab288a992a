"""How each operator hands a gradient back: g is the loss's gradient by the output y of node f(x).

A rule maps inputs (by index) to the gradients by them, or refuses; it may leave inputs out. Every
rule uses only operators of the model's own opset, and outputs rather than inputs where it can, so
that onnxruntime still fuses activations in the forward part.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.calibration.adjoint import (
    elementwise,
    linear,
    moving,
    normalizing,
    pooling,
    resizing,
    slopes,
)
from graphopt.calibration.adjoint.slopes import pointwise
from graphopt.calibration.adjoint.tape import Rule

RULES: Mapping[str, Rule] = {
    "Abs": pointwise(slopes.absolute),
    "Add": elementwise.add,
    "AveragePool": pooling.average_pool,
    "BatchNormalization": elementwise.batch_norm,
    "Cast": elementwise.cast,
    "Clip": pointwise(slopes.clip),
    "Concat": moving.concat,
    "Conv": linear.conv,
    "ConvTranspose": linear.conv_transpose,
    "DepthToSpace": moving.depth_to_space,
    "Div": elementwise.div,
    "Dropout": elementwise.dropout,
    "Elu": pointwise(slopes.elu),
    "Erf": pointwise(slopes.erf),
    "Exp": pointwise(lambda step: step.y),
    "Expand": moving.expand,
    "Flatten": moving.reshape,
    "Gemm": linear.gemm,
    "Gelu": pointwise(slopes.gelu),
    "GlobalAveragePool": pooling.global_average,
    "GlobalMaxPool": pooling.global_max,
    "HardSigmoid": pointwise(slopes.hard_sigmoid),
    "HardSwish": pointwise(slopes.hard_swish),
    "Identity": elementwise.same,
    "InstanceNormalization": normalizing.instance_norm,
    "LRN": normalizing.local_response,
    "LayerNormalization": normalizing.layer_norm,
    "LeakyRelu": pointwise(slopes.leaky),
    "Log": pointwise(lambda step: step.tape.op("Reciprocal", step.input(0))),
    "LogSoftmax": normalizing.log_softmax,
    "MatMul": linear.matmul,
    "MaxPool": pooling.max_pool,
    "Mish": pointwise(slopes.mish),
    "Mul": elementwise.mul,
    "Neg": elementwise.negative,
    "PRelu": pointwise(slopes.prelu),
    "Pad": moving.pad_rule,
    "Pow": elementwise.power,
    "Reciprocal": pointwise(slopes.reciprocal),
    "ReduceMean": lambda step: pooling.reduce(step, since=18, mean=True),
    "ReduceSum": lambda step: pooling.reduce(step, since=13, mean=False),
    "Relu": pointwise(slopes.relu),
    "Reshape": moving.reshape,
    "Resize": resizing.resize,
    "Sigmoid": pointwise(slopes.sigmoid),
    "Slice": moving.slice_rule,
    "Softmax": normalizing.softmax,
    "Softplus": pointwise(lambda step: step.tape.op("Sigmoid", step.input(0))),
    "SpaceToDepth": moving.space_to_depth,
    "Split": moving.split,
    "Sqrt": pointwise(slopes.sqrt),
    "Squeeze": moving.reshape,
    "Sub": elementwise.sub,
    "Sum": elementwise.add,
    "Swish": pointwise(slopes.swish),
    "Tanh": pointwise(slopes.tanh),
    "Transpose": moving.transpose,
    "Unsqueeze": moving.reshape,
    "Upsample": resizing.resize,
}
