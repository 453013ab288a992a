"""Recognise Swish and Mish: a value times a smooth gate of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.scope import Scope, is_op
from graphopt.rewrites.base import ExactRewrite, Finding
from graphopt.rewrites.exact.polynomials import Powers, onwards, read, sources
from graphopt.rewrites.exact.recognised import Recognised

_SWISH_OPSET = 24
"""The only one in which onnxruntime (1.32) runs Swish: it has no kernel, but unfolds it there."""

_GATED: Mapping[Powers, float] = {(1, 1): 1.0}


@dataclass(frozen=True)
class RecogniseSwish(ExactRewrite):
    """x * Sigmoid(a x)  ==>  Swish.          x * Tanh(Softplus(x))  ==>  Mish.

    Mish stands in the standard since opset 18. Swish does since 24, but onnxruntime has no kernel
    for it: in a model of opset 24 it unfolds the operator, into something slower than what it makes
    of the Sigmoid and the Mul (1.3 of the time), and newer ones it cannot run. So a Swish is gated:
    it must be measured not slower, unless the target takes it always (`gated=False`).
    Declines in other opsets, when an intermediate value is used elsewhere, and for element types
    that onnxruntime has neither of.
    https://onnx.ai/onnx/operators/onnx__Swish.html, https://onnx.ai/onnx/operators/onnx__Mish.html
    """

    gated: bool = True
    name = "recognise-swish"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per Sigmoid, or Tanh of a Softplus, that a multiple of its input is multiplied by."""
        if scope.opset < 7:
            return
        for node in scope.graph:
            found = _swish(node, scope) if is_op(node, "Sigmoid") else None
            if found is not None:
                yield found.finding(self, scope, gated=self.gated)
            mish = _mish(node, scope) if is_op(node, "Tanh") else None
            if mish is not None:
                yield mish.finding(self, scope)


def _swish(node: ir.Node, scope: Scope) -> Recognised | None:
    for source in sources(node.inputs[0], scope):
        inside = read(node.inputs[0], (source,), scope)
        if inside is None or inside.terms.keys() != {(1,)}:
            continue
        alpha = inside.terms[(1,)]
        for result in onwards(node, scope):
            around = read(result, (source, node.outputs[0]), scope)
            if around is not None and around.is_close(_GATED, 0.0):
                attributes = {} if alpha == 1.0 else {"alpha": alpha}
                nodes = inside.nodes | around.nodes | {node}
                return Recognised(
                    "Swish", _SWISH_OPSET, source, result, nodes, attributes, last=_SWISH_OPSET
                )
    return None


def _mish(node: ir.Node, scope: Scope) -> Recognised | None:
    softplus = None if node.inputs[0] is None else node.inputs[0].producer()
    if softplus is None or softplus.graph is not scope.graph or not is_op(softplus, "Softplus"):
        return None
    source = softplus.inputs[0]
    assert source is not None
    for result in onwards(node, scope):
        around = read(result, (source, node.outputs[0]), scope)
        if around is not None and around.is_close(_GATED, 0.0):
            nodes = around.nodes | {node, softplus}
            return Recognised("Mish", 18, source, result, nodes)
    return None
