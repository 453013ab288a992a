"""Compute a deformable convolution that samples where a plain one does as a plain one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.affine import fits
from graphopt.graph.constants import constant, is_overridable, is_splat
from graphopt.graph.scope import Scope, is_op
from graphopt.graph.views import ConvView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.composition import edit_of
from graphopt.rewrites.exact.known_channels import known_channels

Array = np.ndarray[Any, Any]

_SHARED = ("kernel_shape", "strides", "dilations", "pads", "group")
"""Attributes that Conv and DeformConv have in common."""


@dataclass(frozen=True)
class DeformToConv(ExactRewrite):
    """DeformConv(x, W, 0, b, m)  ==>  Conv(x, W m, b).

        y[o, p] = b[o] + sum_cu W[o, c, u] m[u] x[c, s p + d u - pad + offset[u, p]]

    With offsets of zero that samples where a convolution does, outside of x the same zeros. A mask
    that is absent or all ones is left out, one that is a number for every kernel position u (and
    offset group) goes into the weight. Offsets and mask may be constants, generated, or predicted by
    a convolution whose weight is zero (as they are initialized before training), also through Split,
    Slice, Concat, Sigmoid and constant factors.
    Declines when the offsets are not zero or computed at run time, when the mask is computed at run
    time or varies from place to place, and when it would have to go into a weight that is computed or
    generated. And in double precision, in which onnxruntime runs DeformConv but not Conv.
    Source: Dai et al. 2017, "Deformable convolutional networks"; Zhu et al. 2019, "Deformable ConvNets
    v2" (masks); https://onnx.ai/onnx/operators/onnx__DeformConv.html
    """

    name = "deform-to-conv"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per deformable convolution."""
        for node in scope.graph:
            if not is_op(node, "DeformConv"):
                continue
            weight = _offsets(node, scope) or _weight(node, scope)
            if isinstance(weight, str):
                yield self.decline(weight, node)
            else:
                removed = (node, *_only_for(node, scope))
                yield Proposal(self.name, removed, self._edit(scope, removed, weight))

    def _edit(
        self, scope: Scope, removed: tuple[ir.Node, ...], weight: Array | ir.Value
    ) -> Callable[[], None]:
        node = removed[0]

        def edit() -> None:
            change = edit_of(scope, self.name, node)
            hint = node.outputs[0].name or node.op_type
            stored = weight
            if not isinstance(stored, ir.Value):
                stored = change.constant(stored, f"{hint}_weight")
            inputs = [node.inputs[0], stored]
            if (bias := _input(node, 3)) is not None:
                inputs.append(bias)
            kept = {
                name: attribute.as_int() if name == "group" else list(attribute.as_ints())
                for name in _SHARED
                if (attribute := node.attributes.get(name)) is not None
            }
            made = change.node("Conv", inputs, kept, hint=hint, name=node.name)
            change.commit(removed, {node.outputs[0]: made})

        return edit


def _only_for(node: ir.Node, scope: Scope) -> list[ir.Node]:
    """The nodes that nothing but the offsets and the mask needs, last ones first.

    Left to be removed as dead, a predictor would first be merged with other readers of its input.
    """
    gone, pending = [node], [_input(node, 2), _input(node, 4)]
    while pending:
        value = pending.pop(0)
        before = None if value is None else value.producer()
        if before is None or before in gone or before.graph is not scope.graph:
            continue
        uses = [use for output in before.outputs for use in output.uses()]
        needed = any(output.is_graph_output() for output in before.outputs)
        if not needed and all(
            use.node in gone and (use.node is not node or use.idx in (2, 4)) for use in uses
        ):
            gone.append(before)
            pending += before.inputs
    return gone[1:]


def _offsets(node: ir.Node, scope: Scope) -> str | None:
    """Why the offsets are not known to be zero, or no convolution computes what they then do."""
    offset = _input(node, 2)
    known = known_channels(offset, scope)
    if known is not None and not np.any(known):
        double = offset is not None and offset.dtype == ir.DataType.DOUBLE
        return "onnxruntime has no plain convolution of type float64" if double else None
    if known is not None or constant(offset) is not None:
        return "its offsets are constant, but not zero"
    if offset is not None and is_overridable(offset) and offset.is_initializer():
        return "its offsets can be overridden by a caller"
    return "its offsets are computed at run time"


def _weight(node: ir.Node, scope: Scope) -> Array | ir.Value | str:
    """The weight of the convolution: the one there is, or one with the mask in it; or why none."""
    mask, stored = _input(node, 4), node.inputs[1]
    assert stored is not None
    known = None if mask is None else known_channels(mask, scope)
    if mask is None or (known is not None and np.all(known == 1.0)):
        return stored
    if known is None:
        constant_mask = constant(mask) is not None
        return f"its mask {'varies from place to place' if constant_mask else 'is computed at run time'}"
    conv = ConvView.of(node, scope)
    if isinstance(conv, str):
        return f"its mask is not all ones, and {conv}"
    taps = int(np.prod(conv.kernel, dtype=int))
    if len(known) != conv.offset_group * taps:
        return "its mask is not one number for every kernel position"
    if is_splat(conv.weight) and np.any(known != known[0]):
        return "a generated weight would have to be stored"
    weight = _masked(conv, known.reshape(conv.offset_group, taps))
    return weight if fits(weight) else f"the folded weights are too large for {weight.dtype}"


def _masked(conv: ConvView, mask: Array) -> Array:
    """The weight times the mask [offset groups, taps] of the channels that it multiplies."""
    if is_splat(conv.weight):
        number = float(conv.weight.flat[0]) * float(mask.flat[0])
        return np.broadcast_to(np.asarray(number, conv.weight.dtype), conv.weight.shape)
    by_channel = np.repeat(mask, conv.in_channels // len(mask), axis=0)  # [C, taps]
    factors = by_channel.reshape(conv.group, 1, -1, *conv.kernel)
    grouped = conv.weight.reshape(conv.group, -1, *conv.weight.shape[1:]).astype(np.float64)
    with np.errstate(over="ignore"):  # the caller asks whether it `fits`
        folded: Array = (grouped * factors).reshape(conv.weight.shape).astype(conv.weight.dtype)
    return folded


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
