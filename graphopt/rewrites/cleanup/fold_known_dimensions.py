"""Dimensions that are asked for at run time, though they are the same for every input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.cleanup.sizes import Dim, Evaluator, Sizes

_SELECTING = ("Shape", "Size", "Gather", "Slice")


@dataclass(frozen=True)
class FoldKnownDimensions(ExactRewrite):
    """Gather | Slice of Shape(v), Shape(v, start, end), Size(v)  ==>  a constant.

    Where the dimensions in question are the same for every input, though others of v may be open:
    Shape(v)[1] is the number of channels, whatever the batch. Arithmetic on it is then left to
    `fold-constants`.

    Declines when a dimension is open.
    Source: https://onnx.ai/onnx/operators/onnx__Shape.html
    """

    name = "fold-known-dimensions"
    kind = "clean-up"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per operator that picks dimensions of a value."""
        evaluate = Evaluator(scope)
        for node in scope.graph:
            if not is_op(node, *_SELECTING) or constant(node.outputs[0]) is not None:
                continue
            sizes = evaluate(node.outputs[0])
            if sizes is None:
                continue
            numbers = sizes.numbers
            if numbers is None:
                picked = is_op(node, "Gather", "Slice") or "start" in node.attributes
                if picked and any(isinstance(size, Dim) for size in sizes.elements):
                    yield self.decline("a dimension that it picks is open", node)
            elif node.outputs[0].dtype is not None:
                yield Proposal(self.name, (node,), self._edit(scope, node, numbers, sizes))

    def _edit(
        self, scope: Scope, node: ir.Node, numbers: list[int], sizes: Sizes
    ) -> Callable[[], None]:
        def edit() -> None:
            result = node.outputs[0]
            assert result.dtype is not None
            array = np.asarray(numbers if sizes.is_vector else numbers[0], result.dtype.numpy())
            change = Edit(scope, self.name, self.kind)
            # A node, not an initializer: the result may be an output of the graph.
            value = {"value": ir.tensor(array)}
            made = change.node("Constant", [], value, hint=result.name or node.op_type)
            change.commit((node,), {result: made})

        return edit
