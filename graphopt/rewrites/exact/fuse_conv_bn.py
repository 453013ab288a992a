"""Fuse a BatchNormalization into the linear operator before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from graphopt.graph.scope import Scope, follower, is_op
from graphopt.graph.views import BatchNormView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.output_affine import LINEAR_OPS, LinearTarget, fold_into


@dataclass(frozen=True)
class FuseConvBatchNorm(ExactRewrite):
    """A linear operator -> BatchNormalization  ==>  the operator alone.

        W' = W * g / sqrt(v + eps)          b' = (b - m) * g / sqrt(v + eps) + beta

    For Conv, ConvTranspose, DeformConv, Gemm and MatMul; 1-D to 3-D, grouped, with or without bias. A
    weight that another node shares is copied.
    Declines when the operator's output is used elsewhere or is a graph output, when a weight or a
    statistic is not constant, in training mode, with spatial=0, and for a MatMul of rank above 2
    (whose channels are not the normalized axis).
    Source: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html
    """

    name = "fuse-conv-bn"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per BatchNormalization of the graph."""
        for node in scope.graph:
            if not is_op(node, "BatchNormalization"):
                continue
            source = node.inputs[0]
            before = None if source is None else source.producer()
            if before is None or source is None or not is_op(before, *LINEAR_OPS):
                made_by = "an input" if before is None else f"a {before.op_type}"
                yield self.decline(f"it normalizes {made_by}, not a convolution", node)
                continue
            if before.graph is not scope.graph:
                yield self.decline("the convolution stands outside this body", before, node)
                continue
            if follower(scope, before) is not node:
                yield self.decline("the output in between is needed elsewhere too", before, node)
                continue
            norm = BatchNormView.of(node, scope)
            if isinstance(norm, str):
                yield self.decline(norm, before, node)
                continue
            target = LinearTarget.of(before, scope)
            if isinstance(target, str):
                yield self.decline(target, before, node)
                continue
            if target.channel_axis != 1 and target.rank != 2:
                yield self.decline("its channels are not the axis that is normalized", before, node)
                continue
            edit = fold_into(self.name, scope, target, node, norm.scale, norm.shift)
            if isinstance(edit, str):
                yield self.decline(edit, before, node)
            else:
                yield Proposal(self.name, (before, node), edit)
