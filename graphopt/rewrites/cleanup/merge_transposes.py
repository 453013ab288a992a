"""Merge Transposes that follow one another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Edit, bypass
from graphopt.graph.scope import Scope, follower
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.cleanup.axes import (
    Order,
    composed,
    in_order,
    is_identity,
    long_axes,
    order_of,
    reshape_target,
)


@dataclass(frozen=True)
class MergeTransposes(ExactRewrite):
    """Transpose -> Transpose  ==>  one of them, or none; Transpose of axes of length 1  ==>  Reshape.

        Transpose(Transpose(x, p), q) = Transpose(x, p[q])

    Stands behind push-transposes, which knows how to move a Transpose but not a Reshape.
    Declines when the value between is needed elsewhere too and nothing would be saved, where two
    names of the interface would become one, and when a Reshape cannot be stated for every input.
    """

    name = "merge-transposes"
    kind = "clean-up"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per Transpose behind a Transpose or of axes of length 1."""
        for node in scope.graph:
            order, source = order_of(node, scope), node.inputs[0] if node.inputs else None
            if order is None or source is None or is_identity(order):
                continue
            before = source.producer()
            first = order_of(before, scope)
            if before is not None and before.graph is scope.graph and first is not None:
                yield self._pair(scope, before, node, composed(first, order))
                continue
            axes = long_axes(scope, source, len(order))
            if not in_order([axis for axis in order if axis in axes]):
                continue
            target = reshape_target(scope, source, [scope.dim(source, axis) for axis in order])
            if target is None or scope.opset < 5:
                yield self.decline("its shape cannot be stated for every input", node)
            else:
                yield Proposal(self.name, (node,), _as_reshape(scope, node, source, target))

    def _pair(self, scope: Scope, before: ir.Node, node: ir.Node, order: Order) -> Finding:
        source = before.inputs[0]
        assert source is not None
        alone = follower(scope, before) is node
        nodes = (before, node) if alone else (node,)
        if is_identity(order):
            if not bypass(scope, node, source):
                return self.decline("it connects an output with a name that must stay", node)
            return Proposal(self.name, nodes, _cancel(scope, nodes, node, source))
        if not alone:
            return self.decline("the value between is needed elsewhere too", before, node)
        return Proposal(self.name, nodes, _join(scope, before, node, order))


def _cancel(
    scope: Scope, nodes: tuple[ir.Node, ...], node: ir.Node, source: ir.Value
) -> Callable[[], None]:
    return lambda: Edit(scope, MergeTransposes.name).commit(nodes, {node.outputs[0]: source})


def _join(scope: Scope, before: ir.Node, node: ir.Node, order: Order) -> Callable[[], None]:
    def edit() -> None:
        change = Edit(scope, MergeTransposes.name, MergeTransposes.kind)
        new = change.like(node, before.inputs, attributes={"perm": list(order)})
        change.commit((before, node), {node.outputs[0]: new})

    return edit


def _as_reshape(
    scope: Scope, node: ir.Node, source: ir.Value, target: list[int]
) -> Callable[[], None]:
    def edit() -> None:
        change = Edit(scope, MergeTransposes.name, MergeTransposes.kind)
        hint = node.outputs[0].name or node.op_type
        shape = change.constant(np.asarray(target, np.int64), f"{hint}_shape")
        new = change.node("Reshape", [source, shape], hint=hint, name=node.name)
        change.commit((node,), {node.outputs[0]: new})

    return edit
