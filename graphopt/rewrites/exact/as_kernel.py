"""Shared by the merges: a linear operator, or a few after one another, seen as one convolution kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.kernels import Form, Kernel, Window, diagonal
from graphopt.graph.constants import constant, is_splat
from graphopt.graph.scope import (
    Scope,
    attribute_int,
    attribute_ints,
    attribute_string,
    is_op,
)
from graphopt.graph.views import BatchNormView, ConvView, LinearView
from graphopt.rewrites.exact.fuse_affine import AFFINE_OPS, Affine

Array = np.ndarray[Any, Any]

FULL_OPS = ("Gemm", "MatMul")
LAYER_OPS = ("Conv", *FULL_OPS)

_LONGEST = 4


@dataclass(frozen=True)
class Trail:
    """The linear operators that lead to a value, nearest first.

    nodes[i] computes values[i] from values[i + 1], and from nothing else that is not constant.
    """

    values: tuple[ir.Value, ...]
    nodes: tuple[ir.Node, ...]

    @classmethod
    def to(cls, value: ir.Value, scope: Scope) -> Trail:
        """Follow a value back through linear operators of this graph."""
        values, nodes = [value], list[ir.Node]()
        while len(nodes) < _LONGEST:
            node = values[-1].producer()
            source = None if node is None or node.graph is not scope.graph else linear_input(node)
            if node is None or source is None:
                break
            nodes.append(node)
            values.append(source)
        return cls(tuple(values), tuple(nodes))

    def since(self, source: ir.Value) -> tuple[ir.Node, ...] | None:
        """The operators from `source` on, in the order they run; None if it is not on the trail."""
        for index, value in enumerate(self.values):
            if value is source:
                return self.nodes[:index][::-1]
        return None


def linear_input(node: ir.Node) -> ir.Value | None:
    """The one value that a node maps linearly (up to a constant), None for any other node."""
    if is_op(node, "Conv", "AveragePool", "BatchNormalization", "Gemm"):
        return node.inputs[0]
    if is_op(node, "MatMul"):
        return node.inputs[0] if constant(node.inputs[1]) is not None else None
    if is_op(node, *AFFINE_OPS):
        moving = [value for value in node.inputs if constant(value) is None]
        return moving[0] if len(moving) == 1 else None
    return None


@dataclass(frozen=True)
class Branch:
    """Operators from one value to another, in the order they run, as one kernel.

    steps: the kernel of each. form: of all of them together.
    """

    nodes: tuple[ir.Node, ...]
    steps: tuple[Kernel, ...]
    form: Form

    @classmethod
    def of(
        cls, nodes: Sequence[ir.Node], channels: int, axes: int, rank: int, scope: Scope
    ) -> Branch | str:
        """Read operators, in the order they run, or say what is in the way.

        channels: of the value they start from. axes: spatial ones (0 for fully connected layers).
        rank: of every value in between.
        """
        form = diagonal(np.ones(channels), axes).form
        steps: list[Kernel] = []
        for node in nodes:
            step = _step(node, form.outputs, axes, rank, scope)
            if isinstance(step, str):
                return step
            joined = form.then(step.form)
            if isinstance(joined, str):
                return joined
            steps.append(step)
            form = joined
        return cls(tuple(nodes), tuple(steps), form)

    @property
    def layers(self) -> tuple[ir.Node, ...]:
        """The convolutions and fully connected layers."""
        return tuple(node for node in self.nodes if is_op(node, *LAYER_OPS))

    @property
    def weights(self) -> int:
        """Multiplications per output position, of those layers that work at output positions."""
        count = 0
        for node, step in zip(reversed(self.nodes), reversed(self.steps), strict=True):
            if is_op(node, *LAYER_OPS):
                count += step.form.weights
            if not step.form.is_pointwise:
                break
        return count

    @property
    def stored(self) -> int:
        """Elements of the layers' weights that take room in the file."""
        return sum(w.size for w in self._layer_weights() if not is_splat(w))

    @property
    def is_generated(self) -> bool:
        """Whether the weight of a layer is one repeated number that takes no room in the file."""
        return any(is_splat(weight) for weight in self._layer_weights())

    def kernel(self) -> Kernel | str:
        """All operators composed, or why they cannot be."""
        if not self.steps:
            return diagonal(np.ones(self.form.outputs), len(self.form.windows))
        whole = self.steps[0]
        for step in self.steps[1:]:
            composed = whole.then(step)
            if isinstance(composed, str):
                return composed
            whole = composed
        return whole

    def _layer_weights(self) -> list[Array]:
        pairs = zip(self.nodes, self.steps, strict=True)
        return [step.weight for node, step in pairs if is_op(node, *LAYER_OPS)]


def first_layer(nodes: Sequence[ir.Node]) -> ir.Node | None:
    """The first convolution or fully connected layer."""
    return next((node for node in nodes if is_op(node, *LAYER_OPS)), None)


def form_of(view: ConvView) -> Form | None:
    """The form of a convolution; None when its padding depends on an open size."""
    if view.pads is None:
        return None
    windows = _windows(view.kernel, view.dilations, view.pads)
    return Form(view.out_channels, view.in_channels, view.group, view.strides, windows)


def _step(node: ir.Node, channels: int, axes: int, rank: int, scope: Scope) -> Kernel | str:
    if is_op(node, *AFFINE_OPS):
        source = linear_input(node)
        assert source is not None
        affine = Affine.of(node, source, channels, 1 if axes else -1, rank)
        if isinstance(affine, str):
            return affine
        return _per_channel(affine.scale, affine.shift, channels, axes)
    if is_op(node, *FULL_OPS):
        return "a convolution and a fully connected layer" if axes else _full(node)
    if not axes:
        return f"a fully connected layer and a {node.op_type}"
    if is_op(node, "BatchNormalization"):
        norm = BatchNormView.of(node, scope)
        if isinstance(norm, str):
            return norm
        return _per_channel(norm.scale, norm.shift, channels, axes)
    if is_op(node, "AveragePool"):
        return _average(node, channels, axes)
    return _convolution(node, axes, scope)


def _per_channel(scale: Array, shift: Array, channels: int, axes: int) -> Kernel:
    point = diagonal(np.broadcast_to(scale, (channels,)), axes)
    return Kernel(point.form, point.weight, np.broadcast_to(shift, (channels,)))


def _full(node: ir.Node) -> Kernel | str:
    view = LinearView.of(node)
    if isinstance(view, str):
        return view
    inputs, outputs = view.weight.shape
    bias = np.zeros(outputs) if view.bias is None else view.bias
    return Kernel(Form(outputs, inputs, 1, (), ()), view.weight.T, bias)


def _convolution(node: ir.Node, axes: int, scope: Scope) -> Kernel | str:
    view = ConvView.of(node, scope)
    if isinstance(view, str):
        return view
    form = form_of(view)
    if form is None:
        return "its padding depends on the size of the input, which is open"
    if len(form.windows) != axes:
        return "the kernels differ in dimensions"
    bias = np.zeros(view.out_channels) if view.bias is None else view.bias
    return Kernel(form, view.weight, bias)


def _average(node: ir.Node, channels: int, axes: int) -> Kernel | str:
    """An average pooling as the depthwise kernel of equal weights that it is."""
    taps = attribute_ints(node, "kernel_shape") or ()
    strides = attribute_ints(node, "strides") or (1,) * axes
    pads = attribute_ints(node, "pads") or (0,) * (2 * axes)
    auto_pad = attribute_string(node, "auto_pad", "NOTSET")
    if auto_pad == "VALID":
        pads = (0,) * (2 * axes)
    elif auto_pad != "NOTSET":
        return f"an average pooling with auto_pad {auto_pad}"
    if any(pads) and not attribute_int(node, "count_include_pad", 0):
        return "the average pooling leaves the padding out of its averages"
    if attribute_int(node, "ceil_mode", 0) and any(stride != 1 for stride in strides):
        return "the average pooling rounds its size up"
    windows = _windows(taps, attribute_ints(node, "dilations") or (1,) * axes, pads)
    form = Form(channels, channels, channels, strides, windows)
    return Kernel(form, np.full(form.shape, 1.0 / np.prod(taps)), np.zeros(channels))


def _windows(
    taps: Sequence[int], dilations: Sequence[int], pads: Sequence[int]
) -> tuple[Window, ...]:
    axes = len(taps)
    return tuple(
        Window(k, d, before, after)
        for k, d, before, after in zip(taps, dilations, pads[:axes], pads[axes:], strict=True)
    )
