"""Compose two fully connected layers with nothing between them into one, where that is cheaper."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.affine import is_uniform
from graphopt.graph.constants import constant, stored
from graphopt.graph.scope import Scope, is_op
from graphopt.graph.views import LinearView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.composition import Bill, Composed, edit_of, kept_between

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class ComposeFcs(ExactRewrite):
    """Gemm | MatMul -> Gemm | MatMul by constants  ==>  one, where that costs no more multiplications.

        (x W1 + b1) W2 + b2 = x (W1 W2) + (b1 W2 + b2)          K N1 + N1 N2 >= K N2

    MatMuls of any rank, as long as the constant is a matrix on the right; Gemm transposed or not,
    with alpha and beta. A bias written as Add is fused before (`fuse-conv-affine`). Measured first
    unless a tenth of the multiplications goes.
    Declines when the one would cost more of them than the two (which is what low-rank factors are
    made for) or, unless `grow`, take more bytes (weights kept in fewer bits); when the output in
    between is used elsewhere or is a graph output; when a weight is not constant or no float.
    Source: https://onnx.ai/onnx/operators/onnx__Gemm.html
    """

    grow: bool = False
    name = "compose-fcs"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per layer that reads another layer's output."""
        for node in scope.graph:
            before = _before(node)
            if before is None:
                continue
            found = self._composed(scope, before, node)
            if isinstance(found, str):
                yield self.decline(found, before, node)
                continue
            bill, composed = found
            yield Proposal(
                self.name,
                (before, node),
                partial(_replace, scope, before, node, composed),
                {"inputs": composed.weight.shape[0], "outputs": composed.weight.shape[1]},
                gated=not bill.is_clear,
            )

    def _composed(
        self, scope: Scope, before: ir.Node, node: ir.Node
    ) -> tuple[Bill, Composed] | str:
        if scope.opset < 7:
            return f"opset {scope.opset} is older than 7"
        kept = kept_between(scope, before)
        if kept is not None:
            return kept
        first, second = LinearView.of(before), LinearView.of(node)
        if isinstance(first, str):
            return first
        if isinstance(second, str):
            return second
        dtype = first.weight.dtype
        if dtype.kind != "f" and "float" not in str(dtype):
            return f"weights of type {dtype} are not composed"
        held = stored(before.inputs[1]) + stored(node.inputs[1])
        bill = _bill(first.weight, second.weight, held)
        objection = bill.objection(self.grow)
        if objection is not None:
            return objection
        bias = None if second.bias is None else second.bias.astype(np.float64)
        if first.bias is not None:
            carried = first.bias.astype(np.float64) @ second.weight.astype(np.float64)
            bias = carried if bias is None else carried + bias
        weight = _product(first.weight, second.weight)
        composed = Composed.of(weight, bias, (first.weight, second.weight))
        return composed if isinstance(composed, str) else (bill, composed)


def _before(node: ir.Node) -> ir.Node | None:
    if not _is_layer(node) or node.inputs[0] is None:
        return None
    before = node.inputs[0].producer()
    return before if before is not None and _is_layer(before) else None


def _is_layer(node: ir.Node) -> bool:
    """Whether it is a product with a weight on the right, not one of two activations."""
    if not is_op(node, "MatMul"):
        return is_op(node, "Gemm")
    weight = node.inputs[1]
    return constant(weight) is not None or (weight is not None and weight.is_initializer())


def _bill(first: Array, second: Array, held: int) -> Bill:
    whole = first.shape[0] * second.shape[1]
    uniform = is_uniform(first) and is_uniform(second)
    return Bill(
        (first.size + second.size, whole),
        (held, 0 if uniform else whole * first.itemsize),
        per=" a row",
    )


def _product(first: Array, second: Array) -> Array:
    """first [K, N1] times second [N1, N2], float64; a repeated number stays one."""
    if is_uniform(first) and is_uniform(second):
        number = float(first.flat[0]) * float(second.flat[0]) * len(second)
        return np.broadcast_to(np.float64(number), (first.shape[0], second.shape[1]))
    product: Array = first.astype(np.float64) @ second.astype(np.float64)
    return product


def _replace(scope: Scope, before: ir.Node, node: ir.Node, composed: Composed) -> None:
    change = edit_of(scope, ComposeFcs.name, before, node)
    hint = node.outputs[0].name or node.op_type
    operands = [before.inputs[0], *composed.operands(change, hint)]
    op_type = "MatMul" if composed.bias is None else "Gemm"
    new = change.node(op_type, operands, hint=hint, name=node.name)
    change.commit((before, node), {node.outputs[0]: new})
