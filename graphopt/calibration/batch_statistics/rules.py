"""How mean and variance of every channel (axis 1) go through an operator: the table of rules.

A rule is approximate where the real answer needs more than two moments of every channel.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import scipy

from graphopt.calibration.batch_statistics.activations import (
    clip,
    hard_sigmoid,
    hard_swish,
    pointwise,
    smooth,
)
from graphopt.calibration.batch_statistics.arithmetic import divided, plus, times
from graphopt.calibration.batch_statistics.moving import (
    average_pool,
    concat,
    cut,
    global_average,
    kept,
    pad,
    reshaped,
)
from graphopt.calibration.batch_statistics.step import Rule
from graphopt.factorize.gaussian import leaky, rectified
from graphopt.graph.scope import attribute_float

RULES: Mapping[str, Rule] = {
    "Identity": kept,
    "Dropout": kept,
    "Cast": kept,
    "MaxPool": kept,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "ReduceMean": global_average,
    "Reshape": reshaped,
    "Flatten": reshaped,
    "Squeeze": reshaped,
    "Unsqueeze": reshaped,
    "Resize": cut,
    "Upsample": cut,
    "Slice": cut,
    "Pad": pad,
    "Concat": concat,
    "Add": plus(1),
    "Sub": plus(-1),
    "Mul": times,
    "Div": divided,
    "Relu": pointwise(lambda _, mean, variance: rectified(mean, variance)),
    "LeakyRelu": pointwise(lambda s, m, v: leaky(m, v, attribute_float(s.node, "alpha", 0.01))),
    "Clip": pointwise(clip),
    "HardSigmoid": pointwise(hard_sigmoid),
    "HardSwish": smooth(hard_swish),
    "Sigmoid": smooth(lambda x: scipy.special.expit(x)),
    "Tanh": smooth(np.tanh),
}
