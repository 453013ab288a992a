"""Shared by the fusions: a linear operator seen as weight and bias, and an affine map folded into it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.affine import compact, fits, fold_bias, is_uniform, scale_axis
from graphopt.graph.constants import stored
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, is_op
from graphopt.graph.views import CONV_OPS, ConvView, LinearView, with_weights

Array = np.ndarray[Any, Any]

_NEGLIGIBLE_BYTES = 1 << 18
"""A file may grow by so much for an operator less."""

LINEAR_OPS = (*CONV_OPS, "Gemm", "MatMul")


@dataclass(frozen=True)
class LinearTarget:
    """A convolution, Gemm or MatMul into which an affine map of its output can go.

    weight_axis: the axis of `weight` that runs over output channels. channel_axis: the axis of the
    output that does (1 for convolutions, -1 for Gemm and MatMul). rank: of the output, if known.
    """

    node: ir.Node
    weight: Array
    bias: Array | None
    channels: int
    channel_axis: int
    rank: int | None
    group: int = 1

    @classmethod
    def of(cls, node: ir.Node, scope: Scope) -> LinearTarget | str:
        """The target at a node, or why there is none."""
        if is_op(node, *CONV_OPS):
            conv = ConvView.of(node, scope)
            if isinstance(conv, str):
                return conv
            return cls(
                node,
                conv.weight,
                conv.bias,
                conv.out_channels,
                channel_axis=1,
                rank=conv.weight.ndim,
                group=conv.group,
            )
        linear = LinearView.of(node)
        if isinstance(linear, str):
            return linear
        rank = 2 if is_op(node, "Gemm") else scope.rank(node.outputs[0])
        return cls(node, linear.weight, linear.bias, linear.weight.shape[1], -1, rank)

    def scaled(self, scale: Array) -> Array:
        """The weight with every output channel multiplied by its scale [channels]."""
        if is_op(self.node, "Conv", "DeformConv"):
            return scale_axis(self.weight, scale, 0)
        if not is_op(self.node, "ConvTranspose") or self.group == 1:
            return scale_axis(self.weight, scale, 1)
        # [C, O/g, ...]: group i of the inputs produces group i of the outputs.
        inputs = self.weight.shape[0] // self.group
        outputs = self.weight.shape[1]
        parts = [
            scale_axis(
                self.weight[i * inputs : (i + 1) * inputs],
                scale[i * outputs : (i + 1) * outputs],
                1,
            )
            for i in range(self.group)
        ]
        joined = np.concatenate(parts)
        return compact(joined) if is_uniform(self.weight) else joined


def fold_into(
    rewrite: str, scope: Scope, target: LinearTarget, after: ir.Node, scale: Array, shift: Array
) -> Callable[[], None] | str:
    """The edit that replaces `target` and the affine node `after` by one operator, or why not.

    scale, shift: [channels] or [1].
    """
    if target.weight.dtype.kind not in "fV" and "float" not in str(target.weight.dtype):
        return f"weights of type {target.weight.dtype} cannot be scaled"
    full_scale = np.broadcast_to(scale, (target.channels,))
    full_shift = np.broadcast_to(shift, (target.channels,))
    adds = bool(np.any(full_shift)) or target.bias is not None
    if adds and is_op(target.node, "MatMul") and target.rank != 2:
        return "a MatMul that is not of rank 2 has no place for a bias"
    weight, bias = _folded(target, full_scale, full_shift)
    if weight is not target.weight and _grows(target, weight):
        return "its weight is kept in fewer bytes, and folding would store it in full"
    if not (fits(weight) and fits(bias)):
        return f"the folded weights are too large for {target.weight.dtype}"

    def edit() -> None:
        change = Edit(scope, rewrite)
        node = target.node
        hint = node.outputs[0].name or node.op_type
        scaled = not np.all(full_scale == 1.0) or is_op(node, "Gemm")
        operands = with_weights(
            node,
            node.inputs[0],
            change.constant(weight, f"{hint}_weight") if scaled else node.inputs[1],
            None if bias is None else change.constant(bias, f"{hint}_bias"),
        )
        if is_op(node, "Gemm") or (is_op(node, "MatMul") and bias is not None):
            new = change.node("Gemm", operands, hint=hint, name=node.name)
        else:
            new = change.like(node, operands)
        change.commit((node, after), {after.outputs[0]: new})

    return edit


def _grows(target: LinearTarget, weight: Array) -> bool:
    """Whether a weight that is generated, or cast from a smaller type, would be stored at full size."""
    grown = weight.nbytes - stored(target.node.inputs[1])
    return not is_uniform(weight) and grown > _NEGLIGIBLE_BYTES


def _folded(target: LinearTarget, scale: Array, shift: Array) -> tuple[Array, Array | None]:
    weight = target.weight if np.all(scale == 1.0) else target.scaled(scale)
    bias = fold_bias(target.bias, scale, shift, target.weight.dtype)
    # Beside a generated weight (ConstantOfShape) the bias stays generated too, where it can.
    return weight, compact(bias) if bias is not None and is_uniform(weight) else bias
