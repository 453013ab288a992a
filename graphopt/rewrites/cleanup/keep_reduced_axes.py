"""Reductions that keep their axes in the first place, where something behind puts them back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, attribute_int, follower, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.cleanup.axes import dims_of, integers

_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
)


@dataclass(frozen=True)
class KeepReducedAxes(ExactRewrite):
    """Reduce* without its axes -> Unsqueeze | Reshape that puts them back  ==>  Reduce* that keeps them.

        Reshape(mean(x[n, c, h, w] over h, w), [n, c, 1, 1]) = mean(x over h, w; keepdims)

    Squeeze-and-excitation as Keras writes it. Declines when the value in between is needed
    elsewhere, and for a Reshape whose result is not known to have the dimensions of the input.
    https://onnx.ai/onnx/operators/onnx__ReduceMean.html
    """

    name = "keep-reduced-axes"
    kind = "clean-up"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per reduction with an Unsqueeze or a Reshape behind it."""
        for node in scope.graph:
            if not is_op(node, *_REDUCTIONS) or attribute_int(node, "keepdims", 1):
                continue
            source, axes = node.inputs[0], integers(node, "axes", 1)
            rank = scope.rank(source)
            users = [use.node for use in node.outputs[0].uses()]
            if source is None or not axes or rank is None:
                continue
            if not any(is_op(user, "Unsqueeze", "Reshape") for user in users):
                continue
            reduced = {axis % rank for axis in axes}
            after = follower(scope, node)
            if after is None:
                yield self.decline("the value in between is needed elsewhere too", node)
            elif _puts_back(after, source, reduced, rank, scope):
                yield Proposal(self.name, (node, after), partial(_keep, scope, node, after))
            elif is_op(after, "Reshape"):
                yield self.decline("the Reshape behind it makes another shape", node, after)


def _puts_back(
    after: ir.Node, source: ir.Value, reduced: set[int], rank: int, scope: Scope
) -> bool:
    """Whether a node makes of a reduced value what a reduction that keeps its axes would have made."""
    if is_op(after, "Unsqueeze"):
        back = integers(after, "axes", 1)
        return back is not None and sorted(a % rank for a in back) == sorted(reduced)
    dims = dims_of(scope, after.outputs[0])
    if not is_op(after, "Reshape") or dims is None or len(dims) != rank:
        return False
    wanted = [1 if axis in reduced else scope.dim(source, axis) for axis in range(rank)]
    off = [axis for axis in range(rank) if dims[axis] is None or dims[axis] != wanted[axis]]
    if len(off) != 1:
        return not off
    # A single one that has no name is what the number of elements leaves for it.
    rest = [size for axis, size in enumerate(wanted) if axis != off[0]]
    counted = all(isinstance(size, int) and size > 0 for size in rest)
    return counted and not isinstance(dims[off[0]], int)


def _keep(scope: Scope, node: ir.Node, after: ir.Node) -> None:
    change = Edit(scope, KeepReducedAxes.name, KeepReducedAxes.kind)
    new = change.like(node, node.inputs, attributes={"keepdims": 1})
    change.commit((node, after), {after.outputs[0]: new})
