"""Take out an Expand before operators that broadcast by themselves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import onnx_ir as ir

from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.cleanup.axes import same_dims
from graphopt.rewrites.cleanup.sizes import Dim, Evaluator, Size

_BROADCASTING = (
    "Mul", "Add", "Sub", "Div", "Pow", "Max", "Min", "Sum", "Where", "Equal", "Greater", "Less",
    "GreaterOrEqual", "LessOrEqual", "And", "Or", "Xor",
)  # fmt: skip


@dataclass(frozen=True)
class DropExpand(ExactRewrite):
    """Expand -> Mul | Add | Where | ...  ==>  the operator alone.

        x * expand(s, shape(x)) = x * s

    `x * gate.expand_as(x)`, as squeeze-and-excite blocks are often written. Only where another
    operand of the operator has the expanded shape for every input: the result then has it anyway.
    Declines when the expanded value is needed elsewhere too.
    https://onnx.ai/onnx/operators/onnx__Expand.html
    """

    name = "drop-expand"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per Expand that an operator could do without."""
        evaluate = Evaluator(scope)
        for node in scope.graph:
            if not is_op(node, "Expand") or node.inputs[0] is None:
                continue
            expanded = node.outputs[0]
            readers = [use.node for use in expanded.uses()]
            idle = [_does_without(scope, evaluate, reader, node) for reader in readers]
            if not any(idle):
                continue
            if expanded.is_graph_output() or not all(idle):
                yield self.decline("the expanded value is needed elsewhere too", node)
                continue
            yield Proposal(self.name, (node,), partial(_take_out, scope, node))


def _does_without(scope: Scope, evaluate: Evaluator, reader: ir.Node, expand: ir.Node) -> bool:
    """Whether an operator that reads an Expand's output would give the same without it."""
    if not is_op(reader, *_BROADCASTING) or reader.graph is not scope.graph:
        return False
    expanded, target = expand.outputs[0], expand.inputs[1]
    others = [value for value in reader.inputs if value is not None and value is not expanded]
    return any(
        value is _shape_of(target)
        or _asks_for_no_more(evaluate, target, value)
        or same_dims(scope, value, expanded)
        for value in others
    )


def _shape_of(target: ir.Value | None) -> ir.Value | None:
    """The value whose whole shape this is: with it, an operator broadcasts as the Expand does."""
    node = None if target is None else target.producer()
    if node is None or not is_op(node, "Shape") or node.attributes:
        return None
    return node.inputs[0]


def _asks_for_no_more(evaluate: Evaluator, target: ir.Value | None, value: ir.Value) -> bool:
    """Whether every size a target asks for is 1 or that of a value, from the last axis on."""
    wanted, dims = evaluate(target), evaluate.dims(value)
    if wanted is None or dims is None or len(wanted.elements) > len(dims):
        return False
    tail = dims[len(dims) - len(wanted.elements) :]
    return all(
        size == 1 or _is_same(size, own) for size, own in zip(wanted.elements, tail, strict=True)
    )


def _is_same(a: Size, b: Size) -> bool:
    return a.same_as(b) if isinstance(a, Dim) else a is not None and a == b


def _take_out(scope: Scope, node: ir.Node) -> None:
    source = node.inputs[0]
    assert source is not None
    Edit(scope, DropExpand.name).commit((node,), {node.outputs[0]: source})
