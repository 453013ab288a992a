"""A layer that can be factored, whatever operator it is: convolution or fully connected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import is_splat
from graphopt.graph.scope import Scope, is_op
from graphopt.graph.views import ConvView, LinearView

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layer:
    """A Conv, or a Gemm/MatMul of rank 2, with constant weights.

    weight: [O, C/g, *kernel] (fully connected: [O, C], no kernel). bias: [O] or None.
    input_size, output_size: spatial sizes for the bound input. pads: begins, then ends.
    """

    node: ir.Node
    weight: Array
    bias: Array | None
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int
    input_size: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of the output value: the same in every clone of the model."""
        return self.node.outputs[0].name or ""

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial size of the kernel; () for a fully connected layer."""
        return tuple(self.weight.shape[2:])

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return int(np.prod(self.kernel, dtype=int))

    @property
    def outputs(self) -> int:
        """Output channels of one group."""
        return int(self.weight.shape[0]) // self.group

    @property
    def inputs(self) -> int:
        """Input channels of one group."""
        return int(self.weight.shape[1])

    def groups(self) -> list[Array]:
        """The weight of every group, [O/g, C/g, *kernel], float64."""
        return np.split(np.asarray(self.weight, np.float64), self.group)

    @classmethod
    def of(cls, node: ir.Node, scope: Scope) -> Layer | str | None:
        """The layer at a node, why it cannot be factored, or None if it is no layer at all."""
        found: Layer | str | None
        if is_op(node, "Conv"):
            found = _conv(node, scope)
        elif is_op(node, "Gemm", "MatMul"):
            found = _linear(node, scope)
        else:
            return None
        if isinstance(found, Layer):
            return _usable(found)
        return found

    def sizes(
        self, stage_kernel: tuple[int, ...], carries: Carries, size: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Spatial output size of a stage (see `structure.Stage`) on a map of this size."""
        rank = len(size)
        return tuple(
            (
                size[axis]
                + (self.pads[axis] + self.pads[axis + rank] if carries.pads[axis] else 0)
                - self.dilations[axis] * (stage_kernel[axis] - 1)
                - 1
            )
            // (self.strides[axis] if carries.strides[axis] else 1)
            + 1
            for axis in range(rank)
        )


@dataclass(frozen=True)
class Carries:
    """What of the layer's geometry one stage of its replacement carries, per spatial axis.

    Dilations are carried wherever the stage's kernel is wider than one.
    """

    strides: tuple[bool, ...]
    pads: tuple[bool, ...]


def _usable(layer: Layer) -> Layer | str:
    if is_splat(layer.weight):
        return "the weight is one repeated number, generated at run time"
    if layer.node.metadata_props.get("graphopt.kind") == "approximate":
        return "already factored by graphopt"
    if layer.weight.dtype not in (np.float32, np.float64, np.float16):
        return f"weights of type {layer.weight.dtype}"
    if layer.group > 1 and layer.inputs == 1:
        return "depthwise: one input channel a group"
    if not np.all(np.isfinite(layer.weight)):
        return "the weight is not finite"
    return layer


def _conv(node: ir.Node, scope: Scope) -> Layer | str:
    conv = ConvView.of(node, scope)
    if isinstance(conv, str):
        return conv
    if conv.pads is None:
        return f"auto_pad={conv.auto_pad} with strides depends on the size of the input"
    shape = scope.shape(node.inputs[0])
    if shape is None:
        return "the size of its input is unknown"
    return Layer(
        node, conv.weight, conv.bias, conv.strides, conv.dilations, conv.pads, conv.group, shape[2:]
    )


def _linear(node: ir.Node, scope: Scope) -> Layer | str | None:
    linear = LinearView.of(node)
    if isinstance(linear, str):
        return None if is_op(node, "MatMul") else linear
    if scope.rank(node.inputs[0]) != 2:
        return "a matrix product of rank above 2"
    return Layer(node, linear.weight.T, linear.bias, (), (), (), 1, ())
