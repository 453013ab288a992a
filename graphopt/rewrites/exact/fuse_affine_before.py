"""Fuse a normalization or affine map into the linear operator behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.scope import Scope, follower, is_op
from graphopt.graph.views import BatchNormView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.fuse_affine import AFFINE_OPS, Affine
from graphopt.rewrites.exact.input_affine import LinearInput, fold_input
from graphopt.rewrites.exact.merge_arithmetic import FUSED_BY_RUNTIME, Step, ends_gelu, survives
from graphopt.rewrites.exact.output_affine import LINEAR_OPS


@dataclass(frozen=True)
class FuseAffineBefore(ExactRewrite):
    """BatchNormalization | Mul | Div | Add | Sub -> Conv | ConvTranspose | Gemm | MatMul  ==>  the operator.

        W (s x + t) + b  =  (W s) x + (b + W t)

    s and t run over the input channels (for Gemm and MatMul: the contracted axis) or are scalars,
    on either side; so (x - mean) / std goes into the first convolution. What pads the operator's
    input is zero and stays zero under a factor, but nothing is added to it, so t passes only an
    operator that does not pad; a transposed convolution only if it is 1x1; a deformable one, which
    may sample outside, never; a MatMul of rank 2, which becomes a Gemm. Where t cannot pass but a
    Mul or Div stands before the Add or Sub, that one goes:

        W (s x + t)  =  (W s) (x + t / s)

    Declines else, and when the constant varies along another axis or widens the value, the value in
    between is needed elsewhere, a weight or statistic is not constant, the weights would leave the
    range of their type or a generated one would have to be stored, and for what belongs to a Gelu or
    LayerNormalization written out, which onnxruntime recognises whole. An affine map between two linear
    operators goes into the first (fuse-conv-bn, fuse-conv-affine) where that is possible.
    """

    name = "fuse-affine-before"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per linear operator that reads an affine map of a value."""
        for node in scope.graph:
            if not is_op(node, *LINEAR_OPS):
                continue
            source = node.inputs[0]
            before = None if source is None else source.producer()
            if before is None or not is_op(before, "BatchNormalization", *AFFINE_OPS):
                continue
            if is_op(node, "MatMul") and _is_product(node):
                continue
            step = None if is_op(before, "BatchNormalization") else Step.of(before)
            if step is None and is_op(before, *AFFINE_OPS):
                continue  # a residual addition or the like
            reason = step if isinstance(step, str) else _misplaced(scope, before, node, step)
            found = reason or self._fused(scope, before, node)
            if isinstance(found, str):
                yield self.decline(found, before, node)
            else:
                yield found

    def _fused(self, scope: Scope, before: ir.Node, node: ir.Node) -> Proposal | str:
        target = LinearInput.of(node, scope)
        if isinstance(target, str):
            return target
        read = _read(before, target, scope)
        if isinstance(read, str):
            return read
        source, affine = read
        if target.obstacle is not None and np.any(affine.shift):
            return self._scale_alone(scope, before, target, source, affine) or target.obstacle
        edit = fold_input(self.name, scope, target, (before,), source, affine.scale, affine.shift)
        return edit if isinstance(edit, str) else Proposal(self.name, (before, node), edit)

    def _scale_alone(
        self, scope: Scope, before: ir.Node, target: LinearInput, middle: ir.Value, outer: Affine
    ) -> Proposal | None:
        """Takes the Mul or Div before an Add or Sub that has to stay: s x + t = s (x + t / s)."""
        first = middle.producer()
        if not is_op(before, "Add", "Sub") or first is None or not is_op(first, "Mul", "Div"):
            return None
        if first.graph is not scope.graph or follower(scope, first) is not before:
            return None
        step = Step.of(first)
        if not isinstance(step, Step):
            return None
        read = _read(first, target, scope)
        if isinstance(read, str):
            return None
        source, inner = read
        scale = outer.scale * inner.scale
        if np.any(scale == 0):
            return None
        with np.errstate(over="ignore", under="ignore"):
            exact = outer.shift / scale
            rounded = exact.astype(step.constant.dtype)
        if not survives(exact, rounded):
            return None
        kept = rounded
        if target.channel_axis == 1 and rounded.size > 1:
            kept = rounded.reshape(-1, *(1,) * (target.rank - 2))
        removed = (first, before)
        edit = fold_input(self.name, scope, target, removed, source, scale, np.zeros(1), kept=kept)
        if isinstance(edit, str):
            return None
        return Proposal(self.name, (*removed, target.node), edit, {"addition_stays": True})


def _is_product(node: ir.Node) -> bool:
    """Whether a MatMul multiplies two values that are computed at run time, as in attention."""
    weight = node.inputs[1]
    return constant(weight) is None and not (weight is not None and weight.is_initializer())


def _misplaced(scope: Scope, before: ir.Node, node: ir.Node, step: Step | None) -> str | None:
    if scope.opset < 7:
        return f"opset {scope.opset} is older than 7"
    if before.graph is not scope.graph:
        return "the affine map stands outside this body"
    if follower(scope, before) is not node:
        return "the value in between is needed elsewhere too"
    if step is not None and ends_gelu(step):
        return FUSED_BY_RUNTIME.format("Gelu")
    if step is not None and _ends_normalization(step):
        return FUSED_BY_RUNTIME.format("normalization")
    return None


def _ends_normalization(step: Step) -> bool:
    """Whether it scales or shifts x / sqrt(variance): the end of a LayerNormalization written out."""
    before = step.source.producer()
    if is_op(step.node, "Add") and before is not None and is_op(before, "Mul"):
        scaling = Step.of(before)
        return isinstance(scaling, Step) and _ends_normalization(scaling)
    if before is None or not is_op(before, "Div"):
        return False
    divisor = before.inputs[1]
    return divisor is not None and is_op(divisor.producer(), "Sqrt")


def _read(node: ir.Node, target: LinearInput, scope: Scope) -> tuple[ir.Value, Affine] | str:
    """What the node reads, and its affine map along the channels of the target; or a reason."""
    if is_op(node, "BatchNormalization"):
        norm = BatchNormView.of(node, scope)
        if isinstance(norm, str):
            return norm
        if target.channel_axis != 1 and target.rank != 2:
            return "what is normalized is not the axis that is contracted"
        assert node.inputs[0] is not None
        return node.inputs[0], Affine(norm.scale, norm.shift)
    step = Step.of(node)
    assert isinstance(step, Step)
    if node.op_type == "Div" and step.swapped:
        return "it divides by its input"
    axis = target.channel_axis
    affine = Affine.of(node, step.source, target.channels, axis, target.rank)
    if isinstance(affine, str):
        return affine
    rank = scope.rank(step.source)
    if rank != target.rank and (rank is not None or step.constant.ndim >= target.rank):
        return "the constant may add dimensions to the value"
    wide = max(affine.scale.size, affine.shift.size) > 1
    if wide and scope.fixed_dim(step.source, axis) != target.channels:
        return "the constant may widen the value: its channels are one, or not fixed"
    return step.source, affine
