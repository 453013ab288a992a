"""Move Transposes through the operators between them until they cancel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.graph.scope import Scope, is_op
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.layout_change import LayoutChange
from graphopt.rewrites.exact.layout_cut import Field, fields, regions

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class PushTransposes(ExactRewrite):
    """Transpose -> elementwise operators -> inverse Transpose  ==>  the operators alone.

        f(Transpose(u)) = Transpose(f(u)),      Add(Transpose(u), c) = Transpose(Add(u, c'))

    NHWC exports (TensorFlow, tf2onnx). Which operators change layout is chosen for the whole graph
    at once: the fewest Transposes, then the fewest bytes moved, then Transposes of the model's inputs
    and outputs, or before fully connected layers (fold-transpose-into-fc), rather than of values
    elsewhere (see `layout_cut`). Through unary and broadcasting
    operators with constants or with each other, Concat, Split, Pad, Slice, Resize, reductions,
    Softmax, QuantizeLinear; swallowed by reductions, Squeeze, Reshape and Transposes behind it where
    the order of the rest allows.

    Ends because every step lowers (Transposes, bytes transposed, Transposes inside the model),
    compared in that order. Declines where moving Transposes would not make them fewer, and where
    one would only come to stand between a QuantizeLinear and its DequantizeLinear.
    """

    name = "push-transposes"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per region that changes layout, and per Transpose that stays in reach of one."""
        moved: set[ir.Node] = set()
        met: dict[ir.Node, str] = {}
        for field in fields(scope, convolve=False):
            met |= dict.fromkeys(_met(field), "moving it would leave no fewer Transposes")
            for region in regions(field):
                change = LayoutChange(self.name, region)
                gain = change.gain()
                if gain[1] > 0:
                    met |= dict.fromkeys(change.transposes, "fewer Transposes, of more bytes")
                elif gain[0] == 0 and any(is_op(node, *_QUANTIZED) for node in region.flips):
                    met |= dict.fromkeys(change.transposes, "it would part quantized neighbours")
                elif gain < (0, 0, 0):
                    moved |= set(change.transposes)
                    yield _proposal(self.name, change)
        for node in scope.graph:
            if node in met and node not in moved:
                yield self.decline(met[node], node)


@dataclass(frozen=True)
class MatMulToConv(ExactRewrite):
    """Transpose to NHWC -> MatMul W [C, O] -> Transpose to NCHW  ==>  Conv 1x1.

        W_conv[o, c, 0, 0] = W[c, o]

    Like push-transposes, for regions in which a MatMul by a constant is one of the operators; the
    additions of biases behind it are folded by fuse-conv-affine. Gated: the blocked convolution is not
    always faster than the matrix product. Declines where that would leave no fewer Transposes, and
    for types that onnxruntime has no convolution for.
    """

    gated: bool = True
    name = "matmul-to-conv"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per region with a MatMul, and per MatMul behind a Transpose that stays one."""
        met: set[ir.Node] = set()
        moved: set[ir.Node] = set()
        for field in fields(scope, convolve=True):
            met |= {node for node in field.flips if is_op(node, "MatMul")}
            for region in regions(field):
                products = {node for node in region.flips if is_op(node, "MatMul")}
                change = LayoutChange(self.name, region)
                gain = change.gain()
                if products and gain[0] < 0 and gain[1] <= 0:
                    moved |= products
                    yield _proposal(self.name, change, gated=self.gated)
        for node in scope.graph:
            if node in met and node not in moved:
                yield self.decline("as a convolution it would leave no fewer Transposes", node)


def _proposal(rewrite: str, change: LayoutChange, *, gated: bool = False) -> Proposal:
    gain = change.gain()
    options = {"operators": change.operators, "transposes": gain[0], "bytes": gain[1]}
    return Proposal(rewrite, change.nodes, change.apply, options, gated=gated)


def _met(field: Field) -> set[ir.Node]:
    """The Transposes beside an operator that could change layout."""
    values = (value for node in field.flips for value in field.operands(node))
    met = {node for value in values if (node := value.producer()) in field.entries and node}
    for node, flip in field.flips.items():
        if flip.moves:
            uses = (use.node for output in node.outputs for use in output.uses())
            met |= {use for use in uses if use in field.exits}
    return met
