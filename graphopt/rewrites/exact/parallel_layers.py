"""Shared by the merges of parallel layers: which layers on one value could be one, and what follows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, is_splat
from graphopt.graph.edit import is_approximate
from graphopt.graph.scope import Scope, follower, is_op
from graphopt.graph.views import ConvView, LinearView
from graphopt.rewrites.exact.as_kernel import LAYER_OPS
from graphopt.rewrites.exact.fuse_affine import channel_vector

Array = np.ndarray[Any, Any]
Traits = tuple[object, ...]

_ELEMENTWISE = (
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu",
    "Celu", "Softplus", "Softsign", "ThresholdedRelu", "Mish", "Gelu", "Swish", "Erf", "Exp",
)  # fmt: skip
"""Activations that do the same to every element, whatever channel it is in."""


@dataclass(frozen=True)
class Layer:
    """A convolution or fully connected layer, and what follows it alone: an offset, an activation.

    kin: layers of equal kin are one but for their weights. weight: [O, C, *kernel] or [K, O].
    channel_axis: of the output; -1 for fully connected layers. tail: the nodes that follow, at most
    an Add of a constant per channel (behind a MatMul) and an activation.
    """

    node: ir.Node
    kin: Traits
    weight: Array
    bias: Array | None
    channel_axis: int
    group: int
    tail: tuple[ir.Node, ...]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """The layer and what follows it."""
        return (self.node, *self.tail)

    @property
    def output(self) -> ir.Value:
        """The value that comes out at the end."""
        return self.nodes[-1].outputs[0]

    @property
    def weight_axis(self) -> int:
        """The axis of the weight that runs over output channels."""
        return 0 if self.channel_axis == 1 else 1

    @property
    def channels(self) -> int:
        """O."""
        return int(self.weight.shape[self.weight_axis])

    @property
    def is_factor(self) -> bool:
        """Whether it is a part of a layer that an approximation took apart."""
        return is_approximate(self.node)

    def function(self, length: int) -> Traits:
        """What the first `length` nodes behind it compute; equal for equal functions."""
        return tuple(_function(node) for node in self.tail[:length])

    def cut(self, length: int) -> Layer:
        """The layer with the first `length` nodes behind it only."""
        return replace(self, tail=self.tail[:length])


def siblings(scope: Scope) -> Iterator[tuple[ir.Node, ...]]:
    """Layers of one operator type on one value, where there are several."""
    by_source: dict[tuple[str, ir.Value], list[ir.Node]] = {}
    for node in scope.graph:
        if not is_op(node, *LAYER_OPS) or node.inputs[0] is None:
            continue
        if is_op(node, "MatMul") and constant(node.inputs[1]) is None:
            continue  # a product of two activations is no layer
        by_source.setdefault((node.op_type, node.inputs[0]), []).append(node)
    yield from (tuple(nodes) for nodes in by_source.values() if len(nodes) > 1)


def kinships(layers: Sequence[Layer]) -> Iterator[tuple[Layer, ...]]:
    """The layers that could be one, where there are several.

    Of those that are equal in all, none is among them: `merge-duplicates` keeps one for all.
    """
    groups: dict[Traits, list[Layer]] = {}
    for layer in layers:
        groups.setdefault(layer.kin, []).append(layer)
    for group in groups.values():
        distinct = [
            layer
            for layer in group
            if not any(other is not layer and _are_equal(other, layer) for other in group)
        ]
        if len(distinct) > 1:
            yield tuple(distinct)


def read_layer(node: ir.Node, scope: Scope) -> Layer | str:
    """The layer at a node, or why its weights cannot be read."""
    if is_op(node, "Conv"):
        conv = ConvView.of(node, scope)
        if isinstance(conv, str):
            return conv
        geometry = (conv.kernel, conv.strides, conv.dilations, conv.auto_pad, conv.pads)
        kin: Traits = (node.inputs[0], geometry, conv.group)
        tail = _tail(node, conv.out_channels, scope)
        return Layer(node, kin, conv.weight, conv.bias, 1, conv.group, tail)
    linear = LinearView.of(node)
    if isinstance(linear, str):
        return linear
    tail = _tail(node, linear.weight.shape[1], scope)
    return Layer(node, (node.inputs[0], node.op_type), linear.weight, linear.bias, -1, 1, tail)


def common_tail(layers: Sequence[Layer]) -> int:
    """How many of the nodes behind the layers compute the same for all."""
    longest = min(len(layer.tail) for layer in layers)
    for length in range(longest, 0, -1):
        if len({layer.function(length) for layer in layers}) == 1:
            return length
    return 0


def offset(node: ir.Node, source: ir.Value, channels: int, scope: Scope) -> Array | None:
    """What an Add adds to each channel (the last axis) of its source; None if it is no such Add."""
    others = [constant(value) for value in node.inputs if value is not source]
    rank = scope.rank(source)
    if scope.opset < 7 or len(others) != 1 or others[0] is None or rank is None:
        return None
    if isinstance(channel_vector(others[0], channels, -1, rank), str):
        return None
    return np.broadcast_to(others[0].reshape(-1), (channels,))


def _tail(node: ir.Node, channels: int, scope: Scope) -> tuple[ir.Node, ...]:
    tail: list[ir.Node] = []
    after = follower(scope, node)
    if is_op(node, "MatMul") and after is not None and is_op(after, "Add"):
        if offset(after, node.outputs[0], channels, scope) is None:
            return ()
        tail.append(after)
        after = follower(scope, after)
    if after is not None and is_op(after, *_ELEMENTWISE) and _function(after) is not None:
        tail.append(after)
    return tuple(tail)


def _function(node: ir.Node) -> Traits | None:
    """The operator with its attributes and constant numbers; None where these are not constant."""
    if is_op(node, "Add"):
        return ("Add",)
    numbers: list[object] = []
    for value in node.inputs[1:]:
        array = None if value is None else constant(value)
        if value is not None and (array is None or array.size != 1):
            return None
        numbers.append(None if array is None else array.reshape(-1)[0].item())
    attributes = sorted((name, str(found.value)) for name, found in node.attributes.items())
    return (node.op_type, tuple(attributes), tuple(numbers))


def _are_equal(one: Layer, other: Layer) -> bool:
    if (one.bias is None) != (other.bias is None) or not _same(one.weight, other.weight):
        return False
    return one.bias is None or other.bias is None or _same(one.bias, other.bias)


def _same(a: Array, b: Array) -> bool:
    if a.shape != b.shape or (a.size and a.flat[0] != b.flat[0]):
        return False
    return (is_splat(a) and is_splat(b)) or np.array_equal(a, b)
