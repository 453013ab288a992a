"""Fuse a Pad into the convolution or pooling behind it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant
from graphopt.graph.edit import Edit
from graphopt.graph.scope import (
    Scope,
    attribute_float,
    attribute_int,
    attribute_ints,
    attribute_string,
    follower,
    is_op,
)
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.lower_bound import lower_bound

_POOLS = ("AveragePool", "MaxPool")


@dataclass(frozen=True)
class Padding:
    """What a Pad node adds to each spatial axis. pads: all begins, then all ends, none negative."""

    pads: tuple[int, ...]
    value: float

    @classmethod
    def of(cls, node: ir.Node, rank: int, scope: Scope) -> Padding | str:
        """The padding of a [N, C, ...] value of this rank, or why it is not one a layer can do."""
        mode = attribute_string(node, "mode", "constant")
        if mode != "constant":
            return f"it pads in the mode {mode}, a layer with a constant"
        if scope.opset < 11:
            value, amounts = attribute_float(node, "value", 0.0), attribute_ints(node, "pads")
            along = None
        else:
            operands = [node.inputs[i] if i < len(node.inputs) else None for i in (1, 2, 3)]
            if any(v is not None and constant(v) is None for v in operands):
                return "what it pads with, or how far, is not constant"
            pads, number, along = (constant(operand) for operand in operands)
            value = 0.0 if number is None else float(number.reshape(-1)[0])
            amounts = None if pads is None else tuple(int(n) for n in pads.ravel())
        axes = range(rank) if along is None else [int(axis) % rank for axis in along.ravel()]
        if amounts is None or len(amounts) != 2 * len(axes):
            return "its pads do not fit the rank of its input"
        begins, ends = [0] * rank, [0] * rank
        for index, axis in enumerate(axes):
            begins[axis], ends[axis] = amounts[index], amounts[index + len(axes)]
        if any(begins[:2] + ends[:2]):
            return "it pads the batch or the channels"
        if min(amounts, default=0) < 0:
            return "it crops (negative pads)"
        return cls((*begins[2:], *ends[2:]), value)


@dataclass(frozen=True)
class FusePad(ExactRewrite):
    """Pad (constant) -> Conv | AveragePool | MaxPool  ==>  the layer, with these pads added to its own.

    Conv pads with zeros, and so may the Pad. AveragePool, once it counts what is padded
    (count_include_pad = 1), averages over zeros too; it may not have had pads it does not count.
    MaxPool pads with minus infinity: the Pad may do so too (or with the lowest number of the type),
    or with a number that never exceeds the input, as zero behind a Relu; then every window must
    hold something of the input, or its maximum would become minus infinity.

    Declines for other modes, pads that are negative, not constant or on batch or channels, a pool
    that would pad as far as its kernel reaches (onnxruntime refuses that), `ceil_mode` unless every
    window ends inside, the positions (`Indices`) of a MaxPool, auto_pad SAME_*, a padded value
    needed elsewhere, ConvTranspose (its pads crop).
    Source: https://onnx.ai/onnx/operators/onnx__Pad.html
    """

    name = "fuse-pad"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per layer that reads a padded value."""
        for node in scope.graph:
            if not is_op(node, "Conv", "ConvTranspose", *_POOLS):
                continue
            source = node.inputs[0]
            pad = None if source is None else source.producer()
            if pad is None or not is_op(pad, "Pad"):
                continue
            changed = _attributes(pad, node, scope)
            if isinstance(changed, str):
                yield self.decline(changed, pad, node)
            else:
                yield Proposal(self.name, (pad, node), partial(_fuse, scope, pad, node, changed))


def _fuse(
    scope: Scope, pad: ir.Node, node: ir.Node, attributes: dict[str, int | str | tuple[int, ...]]
) -> None:
    change = Edit(scope, FusePad.name)
    new = change.like(node, [pad.inputs[0], *node.inputs[1:]], attributes=attributes)
    change.commit((pad, node), {node.outputs[0]: new})


def _attributes(
    pad: ir.Node, node: ir.Node, scope: Scope
) -> dict[str, int | str | tuple[int, ...]] | str:
    """What changes at the layer, or why it cannot take the padding over."""
    if scope.opset < 7:
        return f"opset {scope.opset} is older than 7"
    if pad.graph is not scope.graph:
        return "the Pad stands outside this body"
    if follower(scope, pad) is not node:
        return "the padded value is needed elsewhere too"
    if is_op(node, "ConvTranspose"):
        return "the pads of a transposed convolution crop its output"
    kernel = _kernel(node, scope)
    if kernel is None:
        return "the size of the kernel is unknown"
    padding = Padding.of(pad, len(kernel) + 2, scope)
    if isinstance(padding, str):
        return padding
    auto_pad = attribute_string(node, "auto_pad", "NOTSET")
    if auto_pad not in ("NOTSET", "VALID"):
        return f"how far the layer pads depends on the size of its input (auto_pad {auto_pad})"
    own = (attribute_ints(node, "pads") if auto_pad == "NOTSET" else None) or (0,) * len(kernel) * 2
    if min(own) < 0:
        return "the layer crops (negative pads)"
    total = tuple(a + b for a, b in zip(own, padding.pads, strict=True))
    reason = None
    if is_op(node, *_POOLS):
        reason = _pool_obstacle(pad, node, kernel, total, scope)
    if is_op(node, "MaxPool"):
        reason = reason or _max_obstacle(pad, node, kernel, total, padding.value, scope)
    elif padding.value != 0:
        reason = reason or f"it pads with {padding.value:g}, the layer with zero"
    if is_op(node, "AveragePool") and any(own) and not attribute_int(node, "count_include_pad", 0):
        reason = reason or "the pool does not count its own pads, but would have to count these"
    if reason is not None:
        return reason
    changed: dict[str, int | str | tuple[int, ...]] = {"pads": total}
    if auto_pad != "NOTSET":
        changed["auto_pad"] = "NOTSET"
    if is_op(node, "AveragePool"):
        changed["count_include_pad"] = 1
    return changed


def _kernel(node: ir.Node, scope: Scope) -> tuple[int, ...] | None:
    """Spatial size of the kernel; of a convolution's only the number of axes counts."""
    kernel = attribute_ints(node, "kernel_shape")
    if kernel is not None or is_op(node, *_POOLS):
        return kernel
    weight = constant(node.inputs[1])
    rank = scope.rank(node.inputs[1]) if weight is None else weight.ndim
    return None if rank is None or rank < 3 else (1,) * (rank - 2)


def _pool_obstacle(
    pad: ir.Node, node: ir.Node, kernel: tuple[int, ...], total: tuple[int, ...], scope: Scope
) -> str | None:
    if any(p >= k for p, k in zip(total, kernel * 2, strict=True)):
        return "onnxruntime wants the pads of a pool smaller than its kernel"
    if not attribute_int(node, "ceil_mode", 0):
        return None
    strides = attribute_ints(node, "strides") or (1,) * len(kernel)
    dilations = attribute_ints(node, "dilations") or (1,) * len(kernel)
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        size = scope.fixed_dim(pad.inputs[0], axis + 2)
        slack = total[axis] + total[axis + len(kernel)] - d * (k - 1) - 1
        if s != 1 and (size is None or (size + slack) % s):
            return "ceil_mode: the last window reaches beyond the padding"
    return None


def _max_obstacle(
    pad: ir.Node,
    node: ir.Node,
    kernel: tuple[int, ...],
    total: tuple[int, ...],
    value: float,
    scope: Scope,
) -> str | None:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return "the positions of the maxima are counted in the padded map"
    dilations = attribute_ints(node, "dilations") or (1,) * len(kernel)
    for axis, dilation in enumerate(dilations):
        # Pads are smaller than the kernel, so only a dilated window can step over a small input.
        size = scope.fixed_dim(pad.inputs[0], axis + 2)
        if total[axis] and dilation > 1 and (size is None or size < dilation):
            return "a window might hold nothing but padding"
    if value <= _lowest(pad.inputs[0]) or value <= lower_bound(pad.inputs[0], scope):
        return None
    return f"it pads with {value:g}, the pool with minus infinity, and the input may be less"


def _lowest(source: ir.Value | None) -> float:
    """The lowest finite number of the value's type."""
    dtype = None if source is None else source.dtype
    if dtype is None:
        return -math.inf
    if dtype.is_integer():
        return float(np.iinfo(dtype.numpy()).min)
    if not dtype.is_floating_point():
        return -math.inf
    infinite = dtype.numpy().type(-math.inf)
    return float(np.nextafter(infinite, dtype.numpy().type(0)))
