"""Merge chains of operators that only change the shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, is_splat
from graphopt.graph.edit import Edit, bypass
from graphopt.graph.scope import Scope, attribute_int, follower, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.cleanup.axes import (
    dims_of,
    integers,
    operand,
    reshape_target,
    same_dims,
)

Build = Callable[[Edit], ir.Value]

_OPS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class MergeReshapes(ExactRewrite):
    """Reshape | Flatten | Squeeze | Unsqueeze after one another  ==>  one of them, or none.

    One Reshape to the shape of the last, where that can be stated for every input: at most one
    dimension is left to be computed (-1), others are numbers or copied from the same axis (0).
    Squeeze and Unsqueeze also merge by their axes, whatever the shape. A Reshape whose target is
    computed at run time, though its result is known, gets a constant target (and the operators that
    computed it are dead). A weight that is generated (ConstantOfShape) is generated in that shape.

    Declines when the shape depends on more than that, when the value between is needed elsewhere
    too, where two names of the interface would become one, before opset 5.
    """

    name = "merge-reshapes"
    kind = "clean-up"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per pair of neighbours, and per Reshape to a target that is no constant."""
        for node in scope.graph:
            if not is_op(node, *_OPS):
                continue
            before = None if node.inputs[0] is None else node.inputs[0].producer()
            if before is not None and before.graph is scope.graph and is_op(before, *_OPS):
                yield self._pair(scope, before, node)
            elif before is not None and follower(scope, before) is node and _generates(before):
                yield self._generated(scope, before, node)
            elif is_op(node, "Reshape") and scope.opset >= 5:
                yield from self._target(scope, node)

    def _pair(self, scope: Scope, before: ir.Node, node: ir.Node) -> Finding:
        source, result = before.inputs[0], node.outputs[0]
        assert source is not None
        if scope.opset < 5:
            return self.decline(f"opset {scope.opset} is older than 5", before, node)
        alone = follower(scope, before) is node
        nodes = (before, node) if alone else (node,)
        left = _axes_left(before, node, scope)
        if same_dims(scope, source, result) or left == ([], []):
            if not bypass(scope, node, source):
                return self.decline("it connects an output with a name that must stay", node)
            return Proposal(
                self.name,
                nodes,
                lambda: Edit(scope, self.name).commit(nodes, {result: source}),
            )
        if not alone:
            return self.decline("the value between is needed elsewhere too", before, node)
        build = _by_axes(node, source, left, scope) or _by_target(before, node, source, scope)
        if build is None:
            return self.decline("the shape cannot be stated for every input", before, node)
        return Proposal(self.name, nodes, _replace(scope, nodes, result, build))

    def _generated(self, scope: Scope, before: ir.Node, node: ir.Node) -> Finding:
        result = node.outputs[0]
        array = constant(result)
        if array is None:
            return self.decline("the shape of what is generated is not constant", before, node)
        hint = result.name or node.op_type
        nodes = (before, node)
        return Proposal(
            self.name,
            nodes,
            _replace(scope, nodes, result, lambda change: change.constant(array, hint)),
        )

    def _target(self, scope: Scope, node: ir.Node) -> Iterator[Finding]:
        source, result = node.inputs[0], node.outputs[0]
        wanted = operand(node, 1)
        if source is None or wanted is None or constant(wanted) is not None:
            return
        if wanted.is_graph_input():
            return
        target = _stated(scope, source, result, mixed=False)
        if target is None:
            yield self.decline(
                "its target is computed at run time, and more than one is open", node
            )
        elif wanted.producer() is not None:
            build = _reshape(node, source, target)
            yield Proposal(self.name, (node,), _replace(scope, (node,), result, build))


def _generates(node: ir.Node) -> bool:
    array = constant(node.outputs[0]) if is_op(node, "ConstantOfShape") else None
    return array is not None and is_splat(array)


def _replace(
    scope: Scope, nodes: tuple[ir.Node, ...], result: ir.Value, build: Build
) -> Callable[[], None]:
    def edit() -> None:
        change = Edit(scope, MergeReshapes.name, MergeReshapes.kind)
        change.commit(nodes, {result: build(change)})

    return edit


def _reshape(node: ir.Node, source: ir.Value, target: list[int]) -> Build:
    def build(change: Edit) -> ir.Value:
        hint = node.outputs[0].name or node.op_type
        shape = change.constant(np.asarray(target, np.int64), f"{hint}_shape")
        return change.node("Reshape", [source, shape], hint=hint, name=node.name)

    return build


def _stated(scope: Scope, source: ir.Value, result: ir.Value, *, mixed: bool) -> list[int] | None:
    dims = dims_of(scope, result)
    return None if dims is None else reshape_target(scope, source, dims, mixed=mixed)


def _by_target(before: ir.Node, node: ir.Node, source: ir.Value, scope: Scope) -> Build | None:
    """The last node as a Reshape of the first one's input."""
    own = _own_target(node)
    if own is not None and 0 not in own:
        return lambda change: change.like(node, [source, node.inputs[1]])
    if own is not None and not attribute_int(node, "allowzero", 0):
        target = _resolved(own, node.inputs[0], source, scope)
        if target is not None:
            return _reshape(node, source, target)
    mixed = any(-1 in target and 0 in target for n in (before, node) if (target := _own_target(n)))
    stated = _stated(scope, source, node.outputs[0], mixed=mixed)
    return None if stated is None else _reshape(node, source, stated)


def _own_target(node: ir.Node) -> list[int] | None:
    array = constant(operand(node, 1)) if is_op(node, "Reshape") else None
    return None if array is None else [int(size) for size in array.reshape(-1)]


def _resolved(
    own: list[int], middle: ir.Value | None, source: ir.Value, scope: Scope
) -> list[int] | None:
    """A target whose zeros copy from `middle`, for `source`: as numbers, or from an equal axis."""
    target = list(own)
    for axis, size in enumerate(own):
        if size != 0:
            continue
        dim = scope.dim(middle, axis)
        if isinstance(dim, int) and dim > 0:
            target[axis] = dim
        elif dim is None or isinstance(dim, int) or dim != scope.dim(source, axis):
            return None
    return target


def _axes_left(before: ir.Node, node: ir.Node, scope: Scope) -> tuple[list[int], list[int]] | None:
    """Two Squeeze or Unsqueeze as one: the axes squeezed from the input, those new in the result."""
    source = before.inputs[0]
    rank = scope.rank(source)
    if rank is None:
        return None
    axes: list[int | None] = list(range(rank))  # of the input, None for a new one
    for step in (before, node):
        given = integers(step, "axes", 1)
        if given is None or not is_op(step, "Squeeze", "Unsqueeze"):
            return None
        if is_op(step, "Squeeze"):
            gone = {axis % len(axes) for axis in given}
            axes = [axis for index, axis in enumerate(axes) if index not in gone]
        else:
            count = len(axes) + len(given)
            new = {axis % count for axis in given}
            rest = iter(axes)
            axes = [None if index in new else next(rest) for index in range(count)]
    kept = [axis for axis in axes if axis is not None]
    squeezed = [axis for axis in range(rank) if axis not in kept]
    unsqueezed = [index for index, axis in enumerate(axes) if axis is None]
    # Squeezed at one place and new at the same is nothing at all.
    if squeezed and squeezed == unsqueezed and len(axes) == rank:
        return [], []
    return squeezed, unsqueezed


def _by_axes(
    node: ir.Node, source: ir.Value, left: tuple[list[int], list[int]] | None, scope: Scope
) -> Build | None:
    """One Squeeze or Unsqueeze, if it comes to that."""
    if left is None or (left[0] and left[1]):
        return None
    op_type, axes = ("Squeeze", left[0]) if left[0] else ("Unsqueeze", left[1])

    def build(change: Edit) -> ir.Value:
        hint = node.outputs[0].name or node.op_type
        if scope.opset < 13:
            return change.node(op_type, [source], {"axes": axes}, hint=hint, name=node.name)
        listed = change.constant(np.asarray(axes, np.int64), f"{hint}_axes")
        return change.node(op_type, [source, listed], hint=hint, name=node.name)

    return build
