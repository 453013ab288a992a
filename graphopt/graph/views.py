"""Typed views of the operators with weights: what a rewrite reads instead of raw attributes.

A view exists only when the weight (and the bias, if there is one) is constant; `ConvView.of` and
its siblings return a reason (a string) otherwise, which ends up in the report.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, is_overridable, is_splat
from graphopt.graph.scope import (
    Scope,
    attribute_float,
    attribute_int,
    attribute_ints,
    attribute_string,
    is_op,
)

Array = np.ndarray[Any, Any]

CONV_OPS = ("Conv", "ConvTranspose", "DeformConv")
"""What a ConvView is of."""


@dataclass(frozen=True)
class ConvView:
    """A Conv, ConvTranspose or DeformConv with constant weights.

    weight: [O, C/g, *kernel]; of a ConvTranspose [C, O/g, *kernel]. bias: [O] or None.
    pads: ONNX order, all begins then all ends; None while `auto_pad` (or a ConvTranspose's
    `output_shape`) asks for the input's size. output_padding: zeros but for a ConvTranspose.
    offset_group: parts of the input channels of a DeformConv that are sampled each at positions of
    its own; 0 for the others, which sample nothing.
    Source: https://onnx.ai/onnx/operators/onnx__Conv.html, .../onnx__DeformConv.html
    """

    node: ir.Node
    weight: Array
    bias: Array | None
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto_pad: str
    group: int
    transposed: bool
    output_padding: tuple[int, ...]
    offset_group: int = 0

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial size of the kernel."""
        return tuple(self.weight.shape[2:])

    @property
    def out_channels(self) -> int:
        """O, over all groups."""
        return int(self.weight.shape[1]) * self.group if self.transposed else self.weight.shape[0]

    @property
    def in_channels(self) -> int:
        """C, over all groups."""
        return self.weight.shape[0] if self.transposed else int(self.weight.shape[1]) * self.group

    @classmethod
    def of(cls, node: ir.Node, scope: Scope) -> ConvView | str:
        """The view of a Conv, ConvTranspose or DeformConv node, or why there is none."""
        weight = _weight(node, 1)
        if isinstance(weight, str):
            return weight
        bias: Array | None = None
        at = bias_index(node)
        if len(node.inputs) > at and node.inputs[at] is not None:
            found = _weight(node, at, "bias")
            if isinstance(found, str):
                return found
            bias = found
        spatial = weight.ndim - 2
        if spatial < 1:
            return "the weight has no spatial dimension"
        strides = attribute_ints(node, "strides") or (1,) * spatial
        dilations = attribute_ints(node, "dilations") or (1,) * spatial
        auto_pad = attribute_string(node, "auto_pad", "NOTSET")
        transposed = node.op_type == "ConvTranspose"
        pads: tuple[int, ...] | None = attribute_ints(node, "pads") or (0,) * (2 * spatial)
        if auto_pad != "NOTSET":
            pads = _auto_pads(scope, node, weight.shape[2:], strides, dilations, auto_pad)
        if attribute_ints(node, "output_shape"):
            pads = None
        return cls(
            node=node,
            weight=weight,
            bias=bias,
            strides=strides,
            dilations=dilations,
            pads=pads,
            auto_pad=auto_pad,
            group=attribute_int(node, "group", 1),
            transposed=transposed,
            output_padding=attribute_ints(node, "output_padding") or (0,) * spatial,
            offset_group=attribute_int(node, "offset_group", 1) if deforms(node) else 0,
        )


def deforms(node: ir.Node | None) -> bool:
    """Whether a node is a convolution that samples its input at positions computed at run time."""
    return is_op(node, "DeformConv")


def bias_index(node: ir.Node) -> int:
    """Which input of a linear operator is its bias: a DeformConv reads its offsets before it."""
    return 3 if deforms(node) else 2


def with_weights(
    node: ir.Node, source: ir.Value | None, weight: ir.Value | None, bias: ir.Value | None
) -> list[ir.Value | None]:
    """The inputs of a linear operator with these in their places, and what else it reads."""
    inputs, at = [source, weight, *node.inputs[2:]], bias_index(node)
    inputs += [None] * (at + 1 - len(inputs))
    inputs[at] = bias
    while inputs[-1] is None:
        inputs.pop()
    return inputs


@dataclass(frozen=True)
class LinearView:
    """A fully connected layer: Gemm, or MatMul of an input with a constant on its right.

    weight: [K, O], alpha folded in, so that the layer is x @ weight + bias. bias: [O] or None.
    """

    node: ir.Node
    weight: Array
    bias: Array | None

    @classmethod
    def of(cls, node: ir.Node) -> LinearView | str:
        """The view of a Gemm or MatMul node, or why there is none."""
        weight = _weight(node, 1)
        if isinstance(weight, str):
            return weight
        if weight.ndim != 2:
            return "the constant is not a matrix"
        if is_op(node, "MatMul"):
            return cls(node, weight, None)
        if attribute_int(node, "transA", 0):
            return "transA=1: the input is transposed"
        if attribute_int(node, "transB", 0):
            weight = weight.T
        alpha, beta = attribute_float(node, "alpha", 1.0), attribute_float(node, "beta", 1.0)
        if alpha != 1.0:
            weight = weight * weight.dtype.type(alpha)
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return cls(node, weight, None)
        addend = _weight(node, 2, "bias")
        if isinstance(addend, str):
            return addend
        if addend.ndim > 2 or (addend.ndim == 2 and addend.shape[0] != 1):
            return "the bias differs between samples"
        bias = np.broadcast_to(addend.reshape(-1), (weight.shape[1],))
        if beta != 1.0:
            bias = bias * bias.dtype.type(beta)
        return cls(node, weight, bias)


@dataclass(frozen=True)
class BatchNormView:
    """An inference-mode BatchNormalization as a per-channel affine map y = scale * x + shift.

    scale, shift: float64 [C], from (gamma, beta, mean, variance, epsilon).
    """

    node: ir.Node
    scale: Array
    shift: Array

    @classmethod
    def of(cls, node: ir.Node, scope: Scope) -> BatchNormView | str:
        """The affine map of a BatchNormalization node, or why there is none."""
        if scope.opset < 7:
            return f"opset {scope.opset} is older than 7"
        if attribute_int(node, "training_mode", 0):
            return "training mode: it uses the statistics of the batch"
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return "training mode: its statistics are outputs"
        if scope.opset < 14 and len(node.outputs) > 1:
            return "training mode: it has statistics among its outputs"
        if attribute_int(node, "spatial", 1) != 1:
            return "spatial=0: statistics per position, not per channel"
        arrays: list[Array] = []
        for index, what in enumerate(("scale", "bias", "mean", "variance"), start=1):
            array = _weight(node, index, what)
            if isinstance(array, str):
                return array
            arrays.append(array if is_splat(array) else array.astype(np.float64))
        gamma, beta, mean, variance = (a.astype(np.float64) for a in arrays)
        # onnxruntime reads the attribute as float32, so that is the epsilon that counts.
        epsilon = float(np.float32(attribute_float(node, "epsilon", 1e-5)))
        scale = gamma / np.sqrt(variance + epsilon)
        if not np.all(np.isfinite(scale)):
            return "a variance is negative or not finite"
        return cls(node, scale, beta - mean * scale)


def _weight(node: ir.Node, index: int, what: str = "weight") -> Array | str:
    value = node.inputs[index] if index < len(node.inputs) else None
    array = constant(value)
    if array is not None:
        return array
    if value is not None and is_overridable(value):
        if value.is_initializer():
            return f"the {what} can be overridden by a caller (it is listed as a graph input)"
        return f"the {what} is a graph input"
    return f"the {what} is computed at run time"


def _auto_pads(
    scope: Scope,
    node: ir.Node,
    kernel: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    mode: str,
) -> tuple[int, ...] | None:
    """Explicit pads for auto_pad, or None when they depend on a size that is not fixed."""
    if mode == "VALID":
        return (0,) * (2 * len(kernel))
    if is_op(node, "ConvTranspose"):
        return None
    begins, ends = [], []
    for axis, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True)):
        extent = d * (k - 1) + 1
        if s == 1:
            total = extent - 1
        else:
            size = scope.fixed_dim(node.inputs[0], axis + 2)
            if size is None:
                return None
            total = max((-(-size // s) - 1) * s + extent - size, 0)
        small = total // 2
        begins.append(small if mode == "SAME_UPPER" else total - small)
        ends.append(total - begins[-1])
    return (*begins, *ends)
