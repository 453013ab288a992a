"""A layer that can be factored: a convolution, transposed or deformable, or a fully connected one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import is_splat
from graphopt.graph.edit import is_approximate
from graphopt.graph.scope import Scope, attribute_ints, is_op
from graphopt.graph.views import CONV_OPS, ConvView, LinearView

Array = np.ndarray[Any, Any]

_WIDEST_TRANSPOSED = 9216
"""Unfolded inputs of one group; twice as many take minutes and 16 GB (4x4 kernels, 1024 channels)."""


@dataclass(frozen=True)
class Layer:
    """A Conv, ConvTranspose or DeformConv, or a Gemm/MatMul of rank 2, with constant weights.

    weight: [O, C/g, *kernel] (fully connected: [O, C], no kernel). bias: [O] or None.
    input_size: spatial size for the bound input. pads: begins, then ends.

    A transposed convolution adds x[c, i] W[o, c, u] to the output at s i + d u - p (s strides, d
    dilations, p pads). Read from the output that is y[o, q] = b[o] + sum_cu W[o, c, u]
    x[c, (q + p - d u) / s], where terms with a fraction are none: linear in a patch of the input, so
    that moments, metrics and factors are those of a convolution. Source: Dumoulin & Visin 2016, "A
    guide to convolution arithmetic for deep learning", section 4 (zeros inserted between inputs).

    A deformable one answers y[o, q] = b[o] + sum_cu W[o, c, u] m[u, q] x[c, s q + d u - p + offset[u, q]],
    x interpolated linearly. Offsets and mask m are values of the graph that its sampling stage goes on
    reading; they are the same for all channels of an offset group (one of `offset_group` parts; 0: not
    deformable). So W multiplies a patch again, a sampled one, and mixing the channels of one offset
    group commutes with sampling: A x sampled is A times x sampled, outside of x as well.
    """

    node: ir.Node
    weight: Array
    bias: Array | None
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int
    input_size: tuple[int, ...]
    transposed: bool = False
    output_padding: tuple[int, ...] = ()
    offset_group: int = 0

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

    @property
    def spread(self) -> int:
        """Output positions per position of the input, over the strides of a transposed layer."""
        return int(np.prod(self.strides, dtype=int)) if self.transposed else 1

    @property
    def deformable(self) -> bool:
        """Whether it samples its input at positions computed at run time."""
        return self.offset_group > 0

    @property
    def apart(self) -> int:
        """Equal parts of a group's inputs that are sampled at different positions.

        Channels of two parts must not be mixed before the layer. 0: a group shares offsets with a
        part of another one, so its own parts are not equal.
        """
        if self.offset_group <= self.group:
            return 1 if not self.deformable or self.group % self.offset_group == 0 else 0
        return 0 if self.offset_group % self.group else self.offset_group // self.group

    def groups(self) -> list[Array]:
        """The weight of every group, [O/g, C/g, *kernel], float64."""
        return np.split(np.asarray(self.weight, np.float64), self.group)

    @classmethod
    def of(cls, node: ir.Node, scope: Scope) -> Layer | str | None:
        """The layer at a node, why it cannot be factored, or None if it is no layer at all."""
        found: Layer | str | None
        if is_op(node, *CONV_OPS):
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
        return tuple(
            self._length(axis, length, stage_kernel[axis], carries)
            for axis, length in enumerate(size)
        )

    def _length(self, axis: int, length: int, kernel: int, carries: Carries) -> int:
        rank = len(self.kernel)
        reach = self.dilations[axis] * (kernel - 1)
        stride = self.strides[axis] if carries.strides[axis] else 1
        pads = self.pads[axis] + self.pads[axis + rank] if carries.pads[axis] else 0
        if self.transposed:
            more = self.output_padding[axis] if carries.strides[axis] else 0
            return (length - 1) * stride + reach + 1 - pads + more
        return (length + pads - reach - 1) // stride + 1


@dataclass(frozen=True)
class Carries:
    """What of the layer's geometry one stage of its replacement carries, per spatial axis.

    Dilations are carried wherever the stage's kernel is wider than one, output padding with strides.
    """

    strides: tuple[bool, ...]
    pads: tuple[bool, ...]


def _usable(layer: Layer) -> Layer | str:
    if is_splat(layer.weight):
        return "the weight is one repeated number, generated at run time"
    if is_approximate(layer.node):
        return "already factored by graphopt"
    if layer.weight.dtype not in (np.float32, np.float64, np.float16):
        return f"weights of type {layer.weight.dtype}"
    if layer.deformable and layer.weight.dtype == np.float64:
        return "deformable and float64: onnxruntime has no 1x1 convolution of that type"
    if layer.group > 1 and layer.inputs == 1:
        return "depthwise: one input channel a group"
    if layer.transposed and layer.inputs * layer.taps > _WIDEST_TRANSPOSED:
        return f"transposed, with more than {_WIDEST_TRANSPOSED} unfolded inputs a group: too wide"
    if not np.all(np.isfinite(layer.weight)):
        return "the weight is not finite"
    return layer


def swapped(weight: Array, group: int) -> Array:
    """[C, O/g, *kernel] of a ConvTranspose as [O, C/g, *kernel] of a Conv, or back."""
    if is_splat(weight):
        return weight
    return np.concatenate([part.swapaxes(0, 1) for part in np.split(weight, group)])


def _conv(node: ir.Node, scope: Scope) -> Layer | str:
    conv = ConvView.of(node, scope)
    if isinstance(conv, str):
        return conv
    if attribute_ints(node, "output_shape"):
        return "its pads follow from output_shape and the size of the input"
    if conv.pads is None:
        return f"auto_pad={conv.auto_pad} with strides depends on the size of the input"
    shape = scope.shape(node.inputs[0])
    if shape is None:
        return "the size of its input is unknown"
    return Layer(
        node,
        swapped(conv.weight, conv.group) if conv.transposed else conv.weight,
        conv.bias,
        conv.strides,
        conv.dilations,
        conv.pads,
        conv.group,
        shape[2:],
        conv.transposed,
        conv.output_padding,
        conv.offset_group,
    )


def _linear(node: ir.Node, scope: Scope) -> Layer | str | None:
    linear = LinearView.of(node)
    if isinstance(linear, str):
        return None if is_op(node, "MatMul") else linear
    if scope.rank(node.inputs[0]) != 2:
        return "a matrix product of rank above 2"
    return Layer(node, linear.weight.T, linear.bias, (), (), (), 1, ())
