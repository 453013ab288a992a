"""The few ways in which a node is changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.graph.edit import Edit, bypass
from graphopt.graph.scope import Scope
from graphopt.rewrites.dense.states import Change

NAME = "dense"

TO_LAST, TO_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)
"""Orders of the Transposes to channels last, and back."""


def swapped(node: ir.Node, build: Callable[[Edit], ir.Value]) -> Change:
    """The node's (only) output computed anew."""

    def change(scope: Scope) -> None:
        edit = Edit(scope, NAME)
        edit.commit((node,), {node.outputs[0]: build(edit)})

    return change


def bypassed(node: ir.Node) -> Change:
    """The node taken out: its result is its first operand."""

    def change(scope: Scope) -> None:
        edit, source = Edit(scope, NAME), node.inputs[0]
        assert source is not None
        if not bypass(scope, node, source):  # two names for one value
            source = edit.node("Identity", [source], hint=hint_of(node), name=node.name)
        edit.commit((node,), {node.outputs[0]: source})

    return change


def with_axis(node: ir.Node, name: str, index: int | None = None) -> Change:
    """The node working over axis 1, where the channels are now.

    name: of the attribute, `axis` or `axes`. index: of the input that newer versions have instead.
    """

    def change(scope: Scope) -> None:
        edit, inputs, attributes = Edit(scope, NAME), list(node.inputs), {}
        if index is not None and name not in node.attributes:
            inputs[index] = edit.constant(np.asarray([1], np.int64), f"{hint_of(node)}_axes")
        else:
            attributes = {name: [1] if name == "axes" else 1}
        made = edit.copies(node, inputs, attributes=attributes, outputs=len(node.outputs))
        edit.commit((node,), dict(zip(node.outputs, made, strict=True)))

    return change


def with_operands(node: ir.Node, operands: Callable[[Edit], Mapping[int, ir.Value]]) -> Change:
    """The node with some operands replaced."""

    def build(edit: Edit) -> ir.Value:
        new = operands(edit)
        return edit.like(node, [new.get(i, value) for i, value in enumerate(node.inputs)])

    return swapped(node, build)


def channels_last(node: ir.Node, attributes: Mapping[str, int]) -> Change:
    """Transpose -> node over the last axis -> Transpose back."""

    def build(edit: Edit) -> ir.Value:
        hint = hint_of(node)
        moved = edit.node("Transpose", [node.inputs[0]], {"perm": TO_LAST}, hint=hint)
        result = edit.like(node, [moved, *node.inputs[1:]], attributes=attributes)
        return edit.node("Transpose", [result], {"perm": TO_FIRST}, hint=hint)

    return swapped(node, build)


def hint_of(node: ir.Node) -> str:
    """What names of new values are derived from."""
    return node.outputs[0].name or node.op_type
