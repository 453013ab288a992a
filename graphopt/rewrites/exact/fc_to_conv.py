"""Turn fully connected layers into convolutions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant, reshaped
from graphopt.graph.edit import Edit, is_approximate
from graphopt.graph.scope import Scope, follower, is_op
from graphopt.graph.views import LinearView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.flattening import POOLS, Head, axes_added, head_of

_LAYERS = ("Gemm", "MatMul")

_CARRIED = (
    "Relu", "LeakyRelu", "Clip", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Elu", "Selu",
    "Celu", "Softplus", "Softsign", "Mish", "Gelu", "Swish", "Identity",
)  # fmt: skip
"""Elementwise activations: the same on [N, O] and on [N, O, 1, 1]."""

_BINARY = ("Mul", "Add", "Sub", "Div", "Min", "Max", "Pow")
"""The same there too, where the other operand is one constant number."""

_CONVOLVED = ("float32", "float16", "bfloat16")
"""Element types that Conv takes and onnxruntime runs it in (MatMul takes integers and doubles too)."""


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
    Squeeze, GlobalAveragePool, ReduceMean or ReduceMax, 1-D to 3-D. Activations between the layers
    are carried along (SiLU and the like in two nodes too, and one constant number times or plus);
    one Flatten at the end restores the output. A squeeze-and-excite block, whose result goes back
    to [N, C, 1, 1], keeps no reshape at all. With `everywhere`, layers on a plain [N, K] value are
    converted too, behind a Reshape (for accelerators that only convolve).

    Convolutions of this kind are slower on onnxruntime's CPU for larger batches, so a proposal is
    gated: it must be measured not slower, unless the target takes it always (`gated=False`).
    Declines when the weight is not constant or the map's size is not fixed.
    Sources: Long et al. 2015, "Fully convolutional networks for semantic segmentation"; Hu et al.
    2018, "Squeeze-and-excitation networks".
    """

    gated: bool = True
    everywhere: bool = False
    name = "fc-to-conv"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per chain of fully connected layers."""
        done: set[ir.Node] = set()
        for node in scope.graph:
            if node in done or not is_op(node, *_LAYERS):
                continue
            chain = self._chain(node, scope)
            if chain is None:
                continue
            if isinstance(chain, str):
                yield self.decline(chain, node)
                continue
            done.update(chain.nodes)
            layers = sum(is_op(n, *_LAYERS) for n in chain.body)
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
        head = head_of(node.inputs[0], len(linear.weight), scope)
        if head is None and self.everywhere and node.inputs[0] is not None:
            head = Head(node.inputs[0], (), ())
        if head is None:
            return "no [N, C, H, W] map stands before it"
        if isinstance(head, str):
            return head
        body, tail = _body(node, len(head.kernel) or None, scope)
        if not head.kernel:
            head = replace(head, kernel=(1,) * (axes_added(tail, scope) if tail else 2))
        chain = Chain(head, body, tail)
        if head.pool is not None and head.pool in _still_used(chain):
            return "the pooling's result is needed elsewhere too"
        return chain


def _body(
    first: ir.Node, spatial: int | None, scope: Scope
) -> tuple[tuple[ir.Node, ...], ir.Node | None]:
    """The layers and activations from `first` on, ending with a layer, and a tail if there is one.

    Activations behind the last layer belong to the chain only if a tail follows them. spatial: how
    many axes of space the tail must add (None: any number).
    """
    nodes, length = [first], 1
    while step := _step(scope, nodes[-1]):
        nodes += step
        if is_op(nodes[-1], *_LAYERS):
            length = len(nodes)
    after = follower(scope, nodes[-1])
    if after is not None and after.inputs[0] is nodes[-1].outputs[0]:
        added = axes_added(after, scope)
        if added and spatial in (None, added):
            return tuple(nodes), after
    return tuple(nodes[:length]), None


def _step(scope: Scope, node: ir.Node) -> tuple[ir.Node, ...]:
    """The layer or the activation that comes next, of one or more nodes; () if neither does."""
    value, after = node.outputs[0], follower(scope, node)
    if after is None:
        return _self_gated(scope, value)
    if _is_carried(after, value):
        return (after,)
    is_layer = is_op(after, *_LAYERS) and after.inputs[0] is value
    return (after,) if is_layer and not isinstance(LinearView.of(after), str) else ()


def _is_carried(node: ir.Node, value: ir.Value) -> bool:
    """Whether a node does the same to every element of a value, whatever axes it has."""
    if is_op(node, *_CARRIED):
        return node.inputs[0] is value
    if not is_op(node, *_BINARY) or len(node.inputs) != 2:
        return False
    others = [constant(v) for v in node.inputs if v is not value]
    number = others[0] if len(others) == 1 else None
    return number is not None and number.size == 1 and number.ndim <= 2


def _self_gated(scope: Scope, value: ir.Value) -> tuple[ir.Node, ...]:
    """The nodes of value * f(value) (SiLU, Mish, hard swish), f one or more activations."""
    users = [use.node for use in value.uses()]
    here = all(user.graph is scope.graph for user in users) and not value.is_graph_output()
    if len(users) != 2 or not here:
        return ()
    for gate, multiply in (users, users[::-1]):
        path: list[ir.Node] = []
        source = value
        node: ir.Node | None = gate
        while node is not None and node is not multiply and _is_carried(node, source):
            path.append(node)
            source, node = node.outputs[0], follower(scope, node)
        if path and node is multiply and is_op(multiply, "Mul"):
            return (*path, multiply)
    return ()


def _convert(scope: Scope, chain: Chain) -> None:
    change = Edit(scope, FcToConv.name)
    value, kernel = _source(change, chain), chain.head.kernel
    flat = chain.body[0].inputs[0]
    assert flat is not None
    lifted = {flat: value}
    for node in chain.body:
        hint = node.outputs[0].name or node.op_type
        inputs = [None if v is None else lifted.get(v, v) for v in node.inputs]
        if is_op(node, *_LAYERS):
            value = _layer(change, node, inputs[0], kernel, hint)
            kernel = (1,) * len(kernel)
        else:
            value = change.like(node, inputs)
        lifted[node.outputs[0]] = value
    if chain.tail is None:
        value = change.node("Flatten", [value], {"axis": 1}, hint=chain.last.outputs[0].name or "y")
    kept = _still_used(chain)
    change.commit([n for n in chain.nodes if n not in kept], {chain.last.outputs[0]: value})


def _layer(
    change: Edit, node: ir.Node, source: ir.Value | None, kernel: tuple[int, ...], hint: str
) -> ir.Value:
    """The convolution that does what a Gemm or MatMul does on a map of the kernel's size."""
    linear = LinearView.of(node)
    assert not isinstance(linear, str)
    inputs, outputs = linear.weight.shape
    weight = reshaped(linear.weight.T, (outputs, inputs // math.prod(kernel), *kernel))
    operands = [source, change.constant(weight, f"{hint}_weight")]
    if linear.bias is not None:
        operands.append(change.constant(linear.bias, f"{hint}_bias"))
    attributes = {"kernel_shape": list(kernel)}
    made = change.node("Conv", operands, attributes, hint=hint, name=node.name)
    producer = made.producer()
    if producer is not None and is_approximate(node):  # still a factor of a layer
        producer.metadata_props.update(node.metadata_props)
    return made


def _source(change: Edit, chain: Chain) -> ir.Value:
    """The [N, C, ...space] value the first convolution reads."""
    head = chain.head
    if head.pool is not None:
        hint, op_type = head.pool.outputs[0].name or "pooled", POOLS[head.pool.op_type]
        return change.node(op_type, [head.source], hint=hint, name=head.pool.name)
    if head.nodes:
        return head.source
    target = np.asarray([0, -1, *(1 for _ in head.kernel)], np.int64)
    shape = change.constant(target, f"{head.source.name}_shape")
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
