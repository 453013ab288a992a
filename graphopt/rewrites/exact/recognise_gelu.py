"""Recognise Gelu where it is written out with Erf or Tanh."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.scope import Scope, is_op
from graphopt.rewrites.base import ExactRewrite, Finding
from graphopt.rewrites.exact.polynomials import Powers, onwards, read, sources
from graphopt.rewrites.exact.recognised import Recognised, tolerance

_CUBIC = math.sqrt(2 / math.pi)
_INSIDE: Mapping[str, Mapping[Powers, float]] = {
    "Erf": {(1,): math.sqrt(0.5)},
    "Tanh": {(1,): _CUBIC, (3,): _CUBIC * 0.044715},
}
"""The argument of the function, as a polynomial in x."""

_OUTSIDE: Mapping[Powers, float] = {(1, 0): 0.5, (1, 1): 0.5}
"""The result, as a polynomial in x and the value of the function."""


@dataclass(frozen=True)
class RecogniseGelu(ExactRewrite):
    """0.5 x (1 + Erf(x / sqrt(2))), and its approximation with Tanh  ==>  Gelu.

        gelu(x) = x/2 (1 + erf(x / sqrt(2)))
        tanh:     x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))

    In whatever order it is written: only the polynomials inside and around the function count, with
    constants right to 5e-5 (1e-3 in float16).
    Declines below opset 20, which has no Gelu, when an intermediate value is used elsewhere, and
    for element types that onnxruntime has no Gelu of.
    https://onnx.ai/onnx/operators/onnx__Gelu.html
    """

    name = "recognise-gelu"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per Erf or Tanh that is part of a Gelu."""
        if scope.opset < 7:  # broadcasting went by an `axis` attribute
            return
        for node in scope.graph:
            if is_op(node, *_INSIDE):
                found = _gelu(node, scope)
                if found is not None:
                    yield found.finding(self, scope)


def _gelu(node: ir.Node, scope: Scope) -> Recognised | None:
    attributes = {"approximate": "tanh"} if node.op_type == "Tanh" else {}
    for source in sources(node.inputs[0], scope):
        inside = read(node.inputs[0], (source,), scope)
        if inside is None or not inside.is_close(_INSIDE[node.op_type], tolerance(source)):
            continue
        for result in onwards(node, scope):
            around = read(result, (source, node.outputs[0]), scope)
            if around is not None and around.is_close(_OUTSIDE, tolerance(source)):
                nodes = inside.nodes | around.nodes | {node}
                return Recognised("Gelu", 20, source, result, nodes, attributes)
    return None
