"""Leave out biases that are all zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, is_overridable, is_splat
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, is_op
from graphopt.graph.views import bias_index, with_weights
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal

_FIRST_GEMM_WITHOUT = 11
"""Before this opset a Gemm had to have a third operand."""


@dataclass(frozen=True)
class DropZeroBias(ExactRewrite):
    """Conv | ConvTranspose | DeformConv | Gemm (x, w, 0)  ==>  the same operator (x, w).

        W x + 0 = W x

    Also a bias that is generated (Expand, ConstantOfShape: dynamo exports without their optimizer),
    which then is dead.
    Declines when a caller may override the bias, and for a Gemm before opset 11, which must have one.
    Source: https://onnx.ai/onnx/operators/onnx__Conv.html, https://onnx.ai/onnx/operators/onnx__Gemm.html
    """

    name = "drop-zero-bias"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per operator whose bias is zero everywhere."""
        for node in scope.graph:
            if not is_op(node, "Conv", "ConvTranspose", "DeformConv", "Gemm"):
                continue
            at = bias_index(node)
            bias = node.inputs[at] if len(node.inputs) > at else None
            if bias is None:
                continue
            if is_overridable(bias):
                if bias.const_value is not None and _is_zero(bias.const_value.numpy()):
                    yield self.decline("the bias can be overridden by a caller", node)
                continue
            array = constant(bias)
            if array is None or not _is_zero(array):
                continue
            if is_op(node, "Gemm") and scope.opset < _FIRST_GEMM_WITHOUT:
                yield self.decline(f"a Gemm of opset {scope.opset} must have a bias", node)
                continue
            yield Proposal(self.name, (node,), self._edit(scope, node))

    def _edit(self, scope: Scope, node: ir.Node) -> Callable[[], None]:
        def edit() -> None:
            change = Edit(scope, self.name, self.kind)
            inputs = with_weights(node, node.inputs[0], node.inputs[1], None)
            change.commit((node,), {node.outputs[0]: change.like(node, inputs)})

        return edit


def _is_zero(array: np.ndarray[Any, Any]) -> bool:
    return bool(array.size) and not np.any(array.flat[0] if is_splat(array) else array)
