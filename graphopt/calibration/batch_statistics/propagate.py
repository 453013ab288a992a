"""What the layers see, as far as the file itself knows it: from its batch normalizations.

The running statistics of a BatchNormalization were gathered over the training data: its input has
the recorded mean and variance, its output mean beta and variance (gamma^2 * var / (var + eps)).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphopt.calibration.batch_statistics.rules import RULES
from graphopt.calibration.batch_statistics.step import ChannelMoments, Step
from graphopt.graph.constants import constant
from graphopt.graph.scope import Scope, attribute_float, is_op
from graphopt.runtime import Array


def channel_moments(
    scope: Scope, given: Mapping[str, ChannelMoments] | None = None
) -> dict[str, ChannelMoments]:
    """Mean and variance of the channels of every value of the graph that follows from its norms.

    given: what is known already, by name of the value (of the same model before it was rewritten);
    it goes before what is computed.
    """
    known = dict(given or {})
    for node in scope.graph:
        if is_op(node, "BatchNormalization"):
            known |= {k: v for k, v in _recorded(node).items() if k not in known}
    for node in scope.graph:
        rule = RULES.get(node.op_type)
        if rule is None or not is_op(node, node.op_type):
            continue
        for output in node.outputs:
            name = output.name or ""
            if not name or name in known:
                continue
            found = rule(Step(node, output, scope, known))
            if found is not None and np.all(np.isfinite([found.mean, found.variance])):
                known[name] = found
    return known


def _recorded(node: ir.Node) -> dict[str, ChannelMoments]:
    """Moments of the input and of the output of a BatchNormalization.

    Statistics count here even where a caller could override them: nothing is promised by them.
    """
    source, output = node.inputs[0], node.outputs[0]
    arrays = [_array(value) for value in node.inputs[1:5]]
    found = [array for array in arrays if array is not None]
    shapes = {array.shape for array in found}
    if source is None or len(found) < 4 or len(shapes) > 1 or found[0].ndim != 1:
        return {}
    gamma, beta, mean, variance = (array.astype(np.float64) for array in found)
    held = variance + attribute_float(node, "epsilon", 1e-5)
    if not np.all(np.isfinite([gamma, beta, mean, variance])) or variance.min() < 0:
        return {}
    scaled = gamma**2 * variance / np.maximum(held, np.finfo(float).tiny)
    return {
        output.name or "": ChannelMoments(beta, scaled),
        source.name or "": ChannelMoments(mean, variance),
    }


def _array(value: ir.Value | None) -> Array | None:
    if value is not None and value.is_initializer() and value.const_value is not None:
        return np.asarray(value.const_value.numpy())
    return constant(value)
