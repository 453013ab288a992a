"""How each operator hands a gradient back: g is the loss's gradient by the output y of node f(x).

A rule maps inputs (by index) to the gradients by them, or refuses; it may leave inputs out. Every
rule uses only operators of the model's own opset, and outputs rather than inputs where it can, so
that onnxruntime still fuses activations in the forward part.
"""

from __future__ import annotations

from collections.abc import Mapping

from graphopt.calibration.adjoint import elementwise, linear, moving, pooling, slopes
from graphopt.calibration.adjoint.slopes import pointwise
from graphopt.calibration.adjoint.tape import Rule

RULES: Mapping[str, Rule] = {
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
    "Exp": pointwise(lambda step: step.y),
    "Flatten": moving.reshape,
    "Gemm": linear.gemm,
    "GlobalAveragePool": pooling.global_average,
    "HardSigmoid": pointwise(slopes.hard_sigmoid),
    "HardSwish": pointwise(slopes.hard_swish),
    "Identity": elementwise.same,
    "LeakyRelu": pointwise(slopes.leaky),
    "MatMul": linear.matmul,
    "MaxPool": pooling.max_pool,
    "Mul": elementwise.mul,
    "PRelu": pointwise(slopes.prelu),
    "Pad": moving.pad_rule,
    "ReduceMean": lambda step: pooling.reduce(step, since=18, mean=True),
    "ReduceSum": lambda step: pooling.reduce(step, since=13, mean=False),
    "Relu": pointwise(slopes.relu),
    "Reshape": moving.reshape,
    "Sigmoid": pointwise(slopes.sigmoid),
    "Slice": moving.slice_rule,
    "Softmax": elementwise.softmax,
    "Softplus": pointwise(lambda step: step.tape.op("Sigmoid", step.input(0))),
    "SpaceToDepth": moving.space_to_depth,
    "Split": moving.split,
    "Squeeze": moving.reshape,
    "Sub": elementwise.sub,
    "Sum": elementwise.add,
    "Tanh": pointwise(slopes.tanh),
    "Transpose": moving.transpose,
    "Unsqueeze": moving.reshape,
}
