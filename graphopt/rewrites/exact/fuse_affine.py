"""Fuse a multiplication or addition by per-channel constants into the operator before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.affine import compact
from graphopt.graph.constants import constant, is_splat
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, follower, is_op
from graphopt.graph.views import BatchNormView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.output_affine import LINEAR_OPS, LinearTarget, fold_into

Array = np.ndarray[Any, Any]

AFFINE_OPS = ("Mul", "Div", "Add", "Sub")


@dataclass(frozen=True)
class Affine:
    """y = scale * x + shift along one axis. scale, shift: float64 [channels] or [1]."""

    scale: Array
    shift: Array

    @classmethod
    def of(
        cls, node: ir.Node, source: ir.Value, channels: int, axis: int, rank: int
    ) -> Affine | str:
        """Read a Mul, Div, Add or Sub of `source` with a constant, or say why it is not affine.

        axis: the channel axis of a source with `rank` dimensions.
        """
        position = 0 if node.inputs[0] is source else 1
        other = constant(node.inputs[1 - position])
        if other is None:
            return "the other operand is not constant"
        if other.dtype.kind not in "fV" and "float" not in str(other.dtype):
            return f"a constant of type {other.dtype}"
        vector = channel_vector(other, channels, axis, rank)
        if isinstance(vector, str):
            return vector
        one, zero = np.ones(1), np.zeros(1)
        if node.op_type == "Mul":
            return cls(vector, zero)
        if node.op_type == "Add":
            return cls(one, vector)
        if node.op_type == "Sub":
            return cls(one, -vector) if position == 0 else cls(-one, vector)
        if position == 1:
            return "the operator's output is the divisor"
        if np.any(vector == 0):
            return "it divides by zero"
        return cls(1.0 / vector, zero)


def channel_vector(array: Array, channels: int, axis: int, rank: int) -> Array | str:
    """A broadcastable constant as float64 [channels] or [1], or why it is not per channel.

    It must vary along the channel axis at most, and must not enlarge the result.
    """
    if array.ndim > rank:
        return "the constant has more dimensions than the value"
    shape = (1,) * (rank - array.ndim) + array.shape
    for index, size in enumerate(shape):
        if size != 1 and index != axis % rank:
            return "the constant varies along another axis than the channels"
    if shape[axis] not in (1, channels):
        return "the constant widens the channel axis"
    return array.astype(np.float64).reshape(-1)


@dataclass(frozen=True)
class FuseConvAffine(ExactRewrite):
    """A linear operator -> Mul | Div | Add | Sub  ==>  the operator alone.

        W' = s * W          b' = s * b + t

    The unfolded form of BatchNormalization, biases written as Add, MatMul + Add -> Gemm. The
    constant may be a scalar or vary along the channel axis, on either side. The operator is a Conv,
    ConvTranspose, DeformConv, Gemm or MatMul.
    Declines when the constant varies along another axis or widens the result, when the operator's
    output is used elsewhere, when the weight is not constant.
    """

    name = "fuse-conv-affine"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per arithmetic node that directly follows an operator with weights."""
        for node in scope.graph:
            if not is_op(node, *LINEAR_OPS):
                continue
            after = follower(scope, node)
            if after is None or not is_op(after, *AFFINE_OPS):
                continue
            others = [value for value in after.inputs if value is not node.outputs[0]]
            if len(others) != 1 or constant(others[0]) is None:
                continue  # a residual addition or the like: nothing to fold
            if scope.opset < 7:  # broadcasting went by an `axis` attribute
                yield self.decline(f"opset {scope.opset} is older than 7", node, after)
                continue
            target = LinearTarget.of(node, scope)
            if isinstance(target, str):
                yield self.decline(target, node, after)
                continue
            if target.rank is None:
                yield self.decline("the rank of the output is unknown", node, after)
                continue
            affine = Affine.of(
                after, node.outputs[0], target.channels, target.channel_axis, target.rank
            )
            if isinstance(affine, str):
                yield self.decline(affine, node, after)
                continue
            edit = fold_into(self.name, scope, target, after, affine.scale, affine.shift)
            if isinstance(edit, str):
                yield self.decline(edit, node, after)
            else:
                yield Proposal(self.name, (node, after), edit)


@dataclass(frozen=True)
class FuseBatchNormAffine(ExactRewrite):
    """BatchNormalization -> Mul | Div | Add | Sub by per-channel constants  ==>  BatchNormalization.

        g' = s * g          beta' = s * beta + t

    For a BatchNormalization that has no convolution before it (DenseNet). Declines like
    `fuse-conv-affine`.
    """

    name = "fuse-bn-affine"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per arithmetic node that directly follows a BatchNormalization."""
        for node in scope.graph:
            if not is_op(node, "BatchNormalization"):
                continue
            after = follower(scope, node)
            if after is None or not is_op(after, *AFFINE_OPS):
                continue
            others = [value for value in after.inputs if value is not node.outputs[0]]
            if len(others) != 1 or constant(others[0]) is None:
                continue
            norm = BatchNormView.of(node, scope)
            rank = scope.rank(node.inputs[0])
            if isinstance(norm, str):
                yield self.decline(norm, node, after)
                continue
            if rank is None or rank < 2:
                yield self.decline("the rank of the input is unknown", node, after)
                continue
            affine = Affine.of(after, node.outputs[0], norm.scale.size, 1, rank)
            if isinstance(affine, str):
                yield self.decline(affine, node, after)
            else:
                yield Proposal(self.name, (node, after), _merge(scope, node, after, affine))


def _merge(scope: Scope, node: ir.Node, after: ir.Node, affine: Affine) -> Any:
    def edit() -> None:
        change = Edit(scope, FuseBatchNormAffine.name)
        hint = node.outputs[0].name or node.op_type
        gamma, beta = constant(node.inputs[1]), constant(node.inputs[2])
        assert gamma is not None
        assert beta is not None
        scale = np.broadcast_to(affine.scale, gamma.shape)
        new_gamma = (gamma.astype(np.float64) * scale).astype(gamma.dtype)
        new_beta = (beta.astype(np.float64) * scale + affine.shift).astype(beta.dtype)
        if is_splat(gamma):
            new_gamma, new_beta = compact(new_gamma), compact(new_beta)
        new = change.like(
            node,
            [
                node.inputs[0],
                change.constant(new_gamma, f"{hint}_scale"),
                change.constant(new_beta, f"{hint}_bias"),
                *node.inputs[3:],
            ],
        )
        change.commit((node, after), {after.outputs[0]: new})

    return edit
