"""Turn fully connected layers into convolutions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, reshaped
from graphopt.graph.edit import Edit
from graphopt.graph.scope import (
    Scope,
    attribute_int,
    attribute_ints,
    follower,
    is_op,
)
from graphopt.graph.views import LinearView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal

_CARRIED = (
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu",
    "Celu", "Softplus", "Softsign", "Mish", "Gelu", "Swish", "Identity",
)  # fmt: skip
"""Elementwise activations: the same on [N, O] and on [N, O, 1, 1]."""

_CONVOLVED = ("float32", "float16", "bfloat16")
"""Element types that Conv takes and onnxruntime runs it in (MatMul takes integers and doubles too)."""


@dataclass(frozen=True)
class Head:
    """What stands before the first layer: the [N, C, H, W] value and the nodes that flatten it.

    kernel: H, W of the first convolution (1, 1 behind a global pooling). pool: the ReduceMean that
    becomes a GlobalAveragePool, if any.
    """

    source: ir.Value
    nodes: tuple[ir.Node, ...]
    kernel: tuple[int, int]
    pool: ir.Node | None = None


@dataclass(frozen=True)
class Chain:
    """Layers to convert together: `layers` are Gemm/MatMul, with the activations between them.

    tail: a Reshape/Unsqueeze back to [N, O, 1, 1] behind the last one, as in squeeze-and-excite.
    """

    head: Head
    body: tuple[ir.Node, ...]
    tail: ir.Node | None

    @property
    def last(self) -> ir.Node:
        """The node whose output the conversion replaces."""
        return self.tail or self.body[-1]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        """Everything the conversion removes, in order."""
        return (*self.head.nodes, *self.body, *((self.tail,) if self.tail else ()))


@dataclass(frozen=True)
class FcToConv(ExactRewrite):
    """Flatten -> Gemm -> Relu -> Gemm  ==>  Conv HxW 'valid' -> Relu -> Conv 1x1 -> Flatten.

        W_conv[o, c, i, j] = W_fc[(c H + i) W + j, o]

    For Gemm and MatMul (+ Add), transposed or not, with alpha and beta, behind Flatten, Reshape,
    Squeeze, GlobalAveragePool or ReduceMean. Activations between the layers are carried along; one
    Flatten at the end restores the output. A squeeze-and-excite block, whose result goes back to
    [N, C, 1, 1], keeps no reshape at all. With `everywhere`, layers on a plain [N, K] value are
    converted too, behind a Reshape (for accelerators that only convolve).

    Convolutions of this kind are slower on onnxruntime's CPU for larger batches, so a proposal is
    gated: it must be measured not slower, unless the target takes it always (`gated=False`).
    Declines when the weight is not constant or the map's size is not fixed.
    Source: Long et al. 2015, "Fully convolutional networks for semantic segmentation".
    """

    gated: bool = True
    everywhere: bool = False
    name = "fc-to-conv"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per chain of fully connected layers."""
        done: set[ir.Node] = set()
        for node in scope.graph:
            if node in done or not is_op(node, "Gemm", "MatMul"):
                continue
            chain = self._chain(node, scope)
            if chain is None:
                continue
            if isinstance(chain, str):
                yield self.decline(chain, node)
                continue
            done.update(chain.nodes)
            layers = sum(is_op(n, "Gemm", "MatMul") for n in chain.body)
            yield Proposal(
                self.name,
                chain.nodes,
                partial(_convert, scope, chain),
                {
                    "layers": layers,
                    "kernel": "x".join(map(str, chain.head.kernel)),
                    "reshapes_left": 0 if chain.tail else 1,
                },
                gated=self.gated,
            )

    def _chain(self, node: ir.Node, scope: Scope) -> Chain | str | None:
        if scope.opset < 7:
            return f"opset {scope.opset} is older than 7"
        if is_op(node, "MatMul") and constant(node.inputs[1]) is None:
            return None  # a product of two activations is no layer
        if is_op(node, "MatMul") and scope.rank(node.inputs[0]) != 2:
            return "the input of the MatMul is not a matrix [N, K]"
        linear = LinearView.of(node)
        if isinstance(linear, str):
            return linear
        if linear.weight.dtype.name not in _CONVOLVED:
            return f"onnxruntime has no convolution of type {linear.weight.dtype}"
        head = _head(node, linear, scope)
        if head is None and self.everywhere and node.inputs[0] is not None:
            head = Head(node.inputs[0], (), (1, 1))
        if head is None:
            return "no [N, C, H, W] map stands before it"
        if isinstance(head, str):
            return head
        body, tail = _body(node, scope)
        chain = Chain(head, body, tail)
        if head.pool is not None and head.pool in _still_used(chain):
            return "the pooling's result is needed elsewhere too"
        return chain


def _head(node: ir.Node, linear: LinearView, scope: Scope) -> Head | str | None:
    flat = node.inputs[0]
    before = None if flat is None else flat.producer()
    if before is None or before.graph is not scope.graph or not before.inputs:
        return None
    source = before.inputs[0]
    if source is None:
        return None
    if is_op(before, "ReduceMean") and scope.rank(source) == 4:
        if _reduces_space(before) and not attribute_int(before, "keepdims", 1):
            return Head(source, (before,), (1, 1), pool=before)
        return None
    if scope.rank(source) != 4 or not _flattens(before, scope):
        return None
    channels, height, width = (scope.fixed_dim(source, axis) for axis in (1, 2, 3))
    pool = source.producer()
    if is_op(pool, "GlobalAveragePool", "GlobalMaxPool") or _keeps_pooled(pool):
        height = width = 1
        channels = linear.weight.shape[0]
    if channels is None or height is None or width is None:
        return "the size of the map before it is not fixed"
    if channels * height * width != linear.weight.shape[0]:
        return "the flattening before it does not keep [C, H, W] together"
    if _keeps_pooled(pool) and pool is not None and follower(scope, pool) is before:
        assert pool.inputs[0] is not None
        return Head(pool.inputs[0], (pool, before), (1, 1), pool=pool)
    return Head(source, (before,), (height, width))


def _keeps_pooled(pool: ir.Node | None) -> bool:
    return (
        pool is not None
        and is_op(pool, "ReduceMean")
        and _reduces_space(pool)
        and attribute_int(pool, "keepdims", 1) == 1
    )


def _reduces_space(node: ir.Node) -> bool:
    axes: tuple[int, ...] | None = attribute_ints(node, "axes")
    if axes is None and len(node.inputs) > 1:
        array = constant(node.inputs[1])
        axes = None if array is None else tuple(int(a) for a in array.ravel())
    return axes is not None and sorted(a % 4 for a in axes) == [2, 3]


def _flattens(node: ir.Node, scope: Scope) -> bool:
    """Whether a node turns [N, C, H, W] into [N, C*H*W] for every N."""
    source, output = node.inputs[0], node.outputs[0]
    if is_op(node, "Flatten"):
        return attribute_int(node, "axis", 1) in (1, -3)
    if is_op(node, "Squeeze"):
        axes = attribute_ints(node, "axes")
        if axes is None and len(node.inputs) > 1:
            array = constant(node.inputs[1])
            axes = None if array is None else tuple(int(a) for a in array.ravel())
        return axes is not None and sorted(a % 4 for a in axes) == [2, 3]
    if not is_op(node, "Reshape") or scope.rank(output) != 2:
        return False
    target = constant(node.inputs[1])
    if target is None or target.size != 2 or attribute_int(node, "allowzero", 0):
        return _keeps_batch(source, output, scope)
    first = int(target.ravel()[0])
    if first == 0:
        return True
    batch = scope.fixed_dim(source, 0)
    if first > 0:
        return batch == first
    # [-1, K]: the batch is kept if C*H*W is K.
    sizes = [scope.fixed_dim(source, axis) for axis in (1, 2, 3)]
    known = [size for size in sizes if size is not None]
    return len(known) == 3 and int(np.prod(known)) == int(target.ravel()[1])


def _keeps_batch(source: ir.Value | None, output: ir.Value, scope: Scope) -> bool:
    """Whether both have the same first dimension, as a number or as a symbol."""
    batch = scope.dim(source, 0)
    return batch is not None and scope.dim(output, 0) == batch


def _body(first: ir.Node, scope: Scope) -> tuple[tuple[ir.Node, ...], ir.Node | None]:
    """The layers and activations from `first` on, ending with a layer, and a tail if there is one.

    Activations behind the last layer belong to the chain only if a tail follows them.
    """
    nodes, length = [first], 1
    node = first
    while (after := follower(scope, node)) is not None and after.inputs[0] is node.outputs[0]:
        if is_op(after, *_CARRIED):
            nodes.append(after)
        elif is_op(after, "Gemm", "MatMul") and not isinstance(LinearView.of(after), str):
            nodes.append(after)
            length = len(nodes)
        elif _unflattens(after, scope):
            return tuple(nodes), after
        else:
            break
        node = after
    return tuple(nodes[:length]), None


def _unflattens(node: ir.Node, scope: Scope) -> bool:
    """Whether a node turns [N, O] into [N, O, 1, 1]."""
    if is_op(node, "Unsqueeze"):
        axes = attribute_ints(node, "axes")
        if axes is None and len(node.inputs) > 1:
            array = constant(node.inputs[1])
            axes = None if array is None else tuple(int(a) for a in array.ravel())
        return axes is not None and sorted(a % 4 for a in axes) == [2, 3]
    if not is_op(node, "Reshape") or scope.rank(node.outputs[0]) != 4:
        return False
    source, output, target = node.inputs[0], node.outputs[0], constant(node.inputs[1])
    if target is None:  # view(b, c, 1, 1) with the batch read from another value
        wanted = [scope.fixed_dim(source, 1), 1, 1]
        return _keeps_batch(source, output, scope) and wanted == [
            scope.fixed_dim(output, axis) for axis in (1, 2, 3)
        ]
    if target.size != 4 or attribute_int(node, "allowzero", 0):
        return False
    n, channels, height, width = (int(size) for size in target.ravel())
    width_in = scope.fixed_dim(source, 1)
    batch = scope.fixed_dim(source, 0)
    keeps = n in (0, -1) or n == batch
    return (
        keeps
        and (height, width) == (1, 1)
        and (channels == width_in or (channels == 0) or (channels == -1 and n != -1))
    )


def _convert(scope: Scope, chain: Chain) -> None:
    change = Edit(scope, FcToConv.name)
    value = _lifted(change, chain)
    kernel = chain.head.kernel
    for node in chain.body:
        hint = node.outputs[0].name or node.op_type
        if not is_op(node, "Gemm", "MatMul"):
            value = change.like(node, [value, *node.inputs[1:]])
            continue
        linear = LinearView.of(node)
        assert not isinstance(linear, str)
        height, width = kernel
        shape = (linear.weight.shape[1], linear.weight.shape[0] // (height * width), height, width)
        weight = reshaped(linear.weight.T, shape)
        operands = [value, change.constant(weight, f"{hint}_weight")]
        if linear.bias is not None:
            operands.append(change.constant(linear.bias, f"{hint}_bias"))
        value = change.node(
            "Conv", operands, {"kernel_shape": list(kernel)}, hint=hint, name=node.name
        )
        kernel = (1, 1)
    if chain.tail is None:
        value = change.node("Flatten", [value], {"axis": 1}, hint=chain.last.outputs[0].name or "y")
    removed = [n for n in chain.nodes if n not in _still_used(chain)]
    change.commit(removed, {chain.last.outputs[0]: value})


def _lifted(change: Edit, chain: Chain) -> ir.Value:
    """The [N, C, H, W] value the first convolution reads."""
    head = chain.head
    if head.pool is not None:
        hint = head.pool.outputs[0].name or "pooled"
        return change.node("GlobalAveragePool", [head.source], hint=hint, name=head.pool.name)
    if head.nodes:
        return head.source
    shape = change.constant(np.asarray([0, -1, 1, 1], np.int64), f"{head.source.name}_shape")
    return change.node("Reshape", [head.source, shape], hint=head.source.name or "x")


def _still_used(chain: Chain) -> set[ir.Node]:
    """Head nodes whose result something outside the chain reads too."""
    inside = set(chain.nodes)
    kept: set[ir.Node] = set()
    for node in reversed(chain.head.nodes):
        output = node.outputs[0]
        outside = any(use.node not in inside or use.node in kept for use in output.uses())
        if output.is_graph_output() or outside:
            kept.add(node)
    return kept
