"""What follows from a shape that has become known better than inference knew it."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.scope import Scope
from graphopt.graph.shapes import annotate_node

_MADE_UP = "unk__"
"""How shape inference begins the symbols it gives to what it does not know."""


def refine(scope: Scope, value: ir.Value, shape: ir.Shape) -> None:
    """Add to what is known of a value's shape, and of those computed from it in its graph."""
    value.shape = _both(value.shape, shape)
    changed = {value}
    for node in scope.graph:
        if changed.isdisjoint(node.inputs):
            continue
        before = [output.shape for output in node.outputs]
        annotate_node(node, scope.opset)
        for output, known in zip(node.outputs, before, strict=True):
            output.shape = _both(known, output.shape)
            if output.shape != known:
                changed.add(output)


def _both(known: ir.Shape | None, more: ir.Shape | None) -> ir.Shape | None:
    """Two true statements on one shape as one."""
    if known is None or more is None or len(known) != len(more):
        return known or more
    return ir.Shape([_better(a, b) for a, b in zip(known, more, strict=True)])


def _better(known: int | ir.SymbolicDim, more: int | ir.SymbolicDim) -> int | ir.SymbolicDim:
    if isinstance(known, int) or isinstance(more, int):
        return known if isinstance(known, int) else more
    if known.value is None or (more.value is not None and known.value.startswith(_MADE_UP)):
        return more
    return known
