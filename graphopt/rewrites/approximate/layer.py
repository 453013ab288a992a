"""Shared by the low-rank schemes: which convolutions qualify, and the pieces they are rebuilt from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import is_splat
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, is_op
from graphopt.graph.views import ConvView

Array = np.ndarray[Any, Any]

WORTHWHILE_MACS_RATIO = 0.97
"""A candidate that saves less than this is not offered."""


def dense_conv(node: ir.Node, scope: Scope) -> ConvView | str | None:
    """The view of a convolution that can be factored; a reason why not; None if it is no layer of this kind.

    Depthwise convolutions have nothing to factor (one input channel a group).
    """
    if not is_op(node, "Conv"):
        return None
    conv = ConvView.of(node, scope)
    if isinstance(conv, str):
        return conv
    if is_splat(conv.weight):
        return "the weight is one repeated number, generated at run time"
    if node.metadata_props.get("graphopt.kind") == "approximate":
        return "already factored by graphopt"
    if conv.weight.dtype not in (np.float32, np.float64, np.float16):
        return f"weights of type {conv.weight.dtype}"
    if conv.group > 1 and conv.weight.shape[1] == 1:
        return "depthwise: one input channel a group"
    if conv.pads is None:
        return f"auto_pad={conv.auto_pad} with strides depends on the size of the input"
    if not np.all(np.isfinite(conv.weight)):
        return "the weight is not finite"
    return conv


def groups_of(conv: ConvView) -> list[Array]:
    """The weight of every group, [O/g, C/g, *kernel] each."""
    return list(np.split(conv.weight, conv.group))


def ranks(limit: int, block: int, most: int = 12) -> tuple[int, ...]:
    """Multiples of the channel block up to and including `limit`, thinned out evenly to `most`."""
    all_ranks = np.arange(block, limit + 1, block)
    if len(all_ranks) > most:
        picked = np.linspace(0, len(all_ranks) - 1, most).round().astype(int)
        all_ranks = all_ranks[np.unique(picked)]
    return tuple(int(rank) for rank in all_ranks)


def conv_attributes(
    conv: ConvView,
    kernel: tuple[int, ...],
    *,
    strides: bool,
    dilations: bool,
    pads: tuple[int, ...] | None,
) -> dict[str, Any]:
    """Attributes of one factor: what of the original's strides, dilations and pads it carries."""
    attributes: dict[str, Any] = {"kernel_shape": list(kernel)}
    if strides and any(s != 1 for s in conv.strides):
        attributes["strides"] = list(conv.strides)
    if dilations and any(d != 1 for d in conv.dilations):
        attributes["dilations"] = list(conv.dilations)
    if pads is not None and any(pads):
        attributes["pads"] = list(pads)
    if conv.group != 1:
        attributes["group"] = conv.group
    return attributes


def replace_by_two(
    scope: Scope,
    node: ir.Node,
    rewrite: str,
    conv: ConvView,
    first: tuple[Array, dict[str, Any]],
    second: tuple[Array, dict[str, Any]],
) -> None:
    """Put two convolutions (weight, attributes) in place of `node`; its bias goes on the second.

    No bias on the first: what it sees as padding stays zero, so borders are exact.
    """
    change = Edit(scope, rewrite, kind="approximate")
    hint = node.outputs[0].name or "conv"
    dtype = conv.weight.dtype
    middle = change.node(
        "Conv",
        [node.inputs[0], change.constant(first[0].astype(dtype), f"{hint}_first")],
        first[1],
        hint=f"{hint}_first",
    )
    operands = [middle, change.constant(second[0].astype(dtype), f"{hint}_second")]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        operands.append(node.inputs[2])
    new = change.node("Conv", operands, second[1], hint=hint, name=node.name)
    change.commit((node,), {node.outputs[0]: new})
