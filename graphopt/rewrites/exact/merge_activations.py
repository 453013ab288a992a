"""Merge chains of piecewise-linear activations into one standard operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, attribute_float, follower, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.interval import RELU, Interval, clip, interval_of


@dataclass(frozen=True)
class MergeActivations(ExactRewrite):
    """Relu | Clip | LeakyRelu directly after one another  ==>  one of them.

        Clip(Clip(x, a, b), c, d) = Clip(x, clip(a, c, d), clip(b, c, d)),  Relu = Clip(0, inf)
        LeakyRelu(LeakyRelu(x, a), b) = LeakyRelu(x, a b),  Relu(LeakyRelu(x, a)) = Relu(x)   (a >= 0)

    Declines when the inner one is used elsewhere, a bound is not constant, an interval is empty,
    a slope is negative.
    """

    name = "merge-activations"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per pair of neighbouring activations."""
        for node in scope.graph:
            if not is_op(node, "Relu", "Clip", "LeakyRelu"):
                continue
            after = follower(scope, node)
            if after is None or not is_op(after, "Relu", "Clip", "LeakyRelu"):
                continue
            merged = _merge(scope, node, after)
            if isinstance(merged, str):
                yield self.decline(merged, node, after)
            else:
                yield Proposal(self.name, (node, after), merged)


def _merge(scope: Scope, node: ir.Node, after: ir.Node) -> Callable[[], None] | str:
    source = node.inputs[0]
    if source is None or source.dtype is None:
        return "the element type is unknown"
    first, second = interval_of(node, scope), interval_of(after, scope)
    if isinstance(first, str):
        return first
    if isinstance(second, str):
        return second
    if first is not None and second is not None:
        joined = first.then(second)
        return _replace(scope, node, after, lambda change: _emit(scope, change, node, joined))
    slope = attribute_float(node, "alpha", 0.01) if first is None else None
    outer = attribute_float(after, "alpha", 0.01) if second is None else None
    if (slope is not None and slope < 0) or (outer is not None and outer < 0):
        return "a slope is negative"
    if slope is not None and outer is not None:
        product = slope * outer
        return _replace(
            scope,
            node,
            after,
            lambda change: change.like(node, node.inputs, attributes={"alpha": product}),
        )
    if first is not None and first.low >= 0:  # LeakyRelu of something never negative
        kept = first
    elif second is not None and second.low >= 0:  # never sees what LeakyRelu changed
        kept = second
    else:
        return "the clipping keeps negative values, which LeakyRelu scales"
    return _replace(scope, node, after, lambda change: _emit(scope, change, node, kept))


def _replace(
    scope: Scope, node: ir.Node, after: ir.Node, build: Callable[[Edit], ir.Value]
) -> Callable[[], None]:
    def edit() -> None:
        change = Edit(scope, MergeActivations.name)
        new = build(change)
        change.commit((node, after), {after.outputs[0]: new})

    return edit


def _emit(scope: Scope, change: Edit, node: ir.Node, interval: Interval) -> ir.Value:
    source, hint = node.inputs[0], node.outputs[0].name or node.op_type
    dtype = source.dtype if source is not None else None
    assert dtype is not None
    if interval == RELU and dtype.is_floating_point():
        return change.node("Relu", [source], hint=hint, name=node.name)
    return clip(change, scope, source, interval, dtype, node, hint)
