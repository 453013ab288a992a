"""Layers whose errors count for more than what the fitting inputs show of them."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.scope import is_op
from graphopt.graph.views import deforms

OFFSET_CAUTION = 2.0
"""How much more an error of a layer that predicts the offsets of a DeformConv counts.

The tolerance of its candidates is divided by it. What they cost is measured like that of any other
layer, but on few inputs, and what a shifted sample costs depends on the picture more than
anything else does: nothing where it is flat, all of it at an edge.
"""

_HANDING_ON = (
    "Add", "Cast", "Clip", "Concat", "Div", "Gather", "Identity", "Mul", "Neg", "Relu", "Reshape",
    "Sigmoid", "Slice", "Split", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze",
)  # fmt: skip
"""What stands between a layer and the offsets that it predicts: parts are cut out, limited, scaled."""


def caution(node: ir.Node) -> float:
    """What errors of the layer at a node are multiplied by before they are weighed against others."""
    return OFFSET_CAUTION if predicts_offsets(node) else 1.0


def predicts_offsets(node: ir.Node) -> bool:
    """Whether a layer's output becomes offsets of a DeformConv without another layer in between."""
    pending, seen = [node.outputs[0]], {node.outputs[0]}
    while pending:
        for user, index in pending.pop().uses():
            if deforms(user) and index == 2:
                return True
            if is_op(user, *_HANDING_ON):
                new = [value for value in user.outputs if value not in seen]
                pending += new
                seen.update(new)
    return False
