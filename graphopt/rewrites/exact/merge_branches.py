"""Merge parallel linear branches that meet in an addition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.affine import compact, fits, is_uniform
from graphopt.factorize.kernels import Form, Kernel
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, is_op, only_use
from graphopt.graph.views import ConvView, LinearView
from graphopt.rewrites.base import ExactRewrite, Finding, Proposal
from graphopt.rewrites.exact.as_kernel import (
    FULL_OPS,
    LAYER_OPS,
    Branch,
    Trail,
    first_layer,
    form_of,
)
from graphopt.rewrites.exact.sum_tree import Total


@dataclass(frozen=True)
class Pair:
    """Two terms of a sum that are branches of one value, by their positions among the terms."""

    first: int
    second: int
    source: ir.Value
    nodes: tuple[tuple[ir.Node, ...], tuple[ir.Node, ...]]

    @property
    def layer(self) -> ir.Node:
        """A convolution or fully connected layer of theirs."""
        found = first_layer(self.nodes[0]) or first_layer(self.nodes[1])
        assert found is not None
        return found


@dataclass(frozen=True)
class MergeBranches(ExactRewrite):
    """Conv kxk (x) + Conv 1x1 (x) + BatchNormalization (x) + x  ==>  Conv kxk (x).

        W = sum_i W_i, each in its place inside the largest kernel          b = sum_i b_i

    RepVGG, ACNet and the like in the form they are trained in. A branch is a convolution, a
    per-channel Mul, Add, Sub, Div or BatchNormalization (a diagonal 1x1 kernel), an average pooling
    (a depthwise kernel of 1 / k^2), x itself (the unit kernel), or some of these after one another
    where all but one are pointwise. Fully connected layers are merged alike: x W + (x A) B, a
    low-rank adapter beside its layer, becomes x (W + A B). Branches meet in an Add, Sub or Sum, or
    in a tree of them beside other terms; they are merged two at a time.

    A kernel's place follows from the pads: a branch with `before` less padding starts `before` taps
    later. Merging x itself into a convolution saves no convolution and is measured first.
    Declines when the branches differ in strides, dilations or output size, when the merged kernel
    would cost more multiplications than the branches, when a branch is used elsewhere, a weight is
    not constant, an average leaves the padding out, or a bias stands before a padded kernel.
    Source: Ding et al. 2021, "RepVGG"; Ding et al. 2019, "ACNet"; Ding et al. 2021, "Diverse branch
    block"; Hu et al. 2021, "LoRA".
    """

    gated: bool = True
    name = "merge-branches"

    def propose(self, scope: Scope) -> Iterator[Finding]:
        """One finding per sum: the first two branches that can be merged, or why none can."""
        for node in tuple(scope.graph):
            total = Total.at(node, scope) if node.graph is scope.graph else None
            if total is None:
                continue
            declined: list[Finding] = []
            for pair in _pairs(total, scope):
                merged = _merge(total, pair, scope)
                if not isinstance(merged, str):
                    yield self._proposal(total, pair, merged, scope)
                    break
                declined.append(self.decline(merged, *pair.nodes[0], *pair.nodes[1], total.root))
            else:
                yield from declined

    def _proposal(self, total: Total, pair: Pair, kernel: Kernel, scope: Scope) -> Proposal:
        branches = (*pair.nodes[0], *pair.nodes[1])
        taps = "x".join(str(window.taps) for window in kernel.form.windows)
        return Proposal(
            self.name,
            (*branches, *total.nodes[::-1]),
            partial(_replace, scope, total, pair, kernel),
            {"kernel": taps} if taps else {},
            gated=self.gated and len(branches) == 1,
        )


def _pairs(total: Total, scope: Scope) -> Iterator[Pair]:
    trails = [Trail.to(value, scope) for value, _ in total.terms]
    for (i, a), (j, b) in combinations(enumerate(trails), 2):
        for source in a.values:
            ours, theirs = a.since(source), b.since(source)
            if ours is None or theirs is None:
                continue
            if first_layer((*ours, *theirs)) is not None:
                yield Pair(i, j, source, (ours, theirs))
            break


def _merge(total: Total, pair: Pair, scope: Scope) -> Kernel | str:
    """The kernel that stands for both branches, or why there is none."""
    if scope.opset < 7:
        return f"opset {scope.opset} is older than 7"
    if any(only_use(node.outputs[0]) is None for nodes in pair.nodes for node in nodes):
        return "the output of a branch is needed elsewhere too"
    read = _read(pair, scope)
    if isinstance(read, str):
        return read
    one, two = read
    axes = len(one.form.windows)
    sizes = [scope.fixed_dim(pair.source, axis + 2) for axis in range(axes)]
    form = one.form.join(two.form, sizes)
    if isinstance(form, str):
        return form
    if form.weights > one.weights + two.weights:
        was = one.weights + two.weights
        return f"one kernel for both takes {form.weights} multiplications a position, not {was}"
    if _outgrows(form, one, two):
        return "the weight is generated, and the sum would have to be stored"
    kernels = one.kernel(), two.kernel()
    if isinstance(kernels[0], str):
        return kernels[0]
    if isinstance(kernels[1], str):
        return kernels[1]
    signs = total.terms[pair.first][1], total.terms[pair.second][1]
    return _rounded(kernels[0].plus(kernels[1], form, signs), pair.layer, scope)


def _outgrows(form: Form, one: Branch, two: Branch) -> bool:
    """Whether weights that take no room in the file would become one that does."""
    if not (one.is_generated or two.is_generated):
        return False
    uniform = one.form == two.form and all(b.is_generated and len(b.steps) == 1 for b in (one, two))
    return not uniform and form.weights > one.stored + two.stored


def _read(pair: Pair, scope: Scope) -> tuple[Branch, Branch] | str:
    layer = pair.layer
    if is_op(layer, *FULL_OPS):
        view = LinearView.of(layer)
        if isinstance(view, str):
            return view
        channels, axes, rank = view.weight.shape[0], 0, scope.rank(pair.source)
    else:
        conv = ConvView.of(layer, scope)
        if isinstance(conv, str):
            return conv
        channels, axes, rank = conv.in_channels, len(conv.kernel), conv.weight.ndim
    if rank is None:
        return "the rank of the input is unknown"
    branches: list[Branch] = []
    for nodes in pair.nodes:
        branch = Branch.of(nodes, channels, axes, rank, scope)
        if isinstance(branch, str):
            return branch
        branches.append(branch)
    return branches[0], branches[1]


def _rounded(kernel: Kernel, layer: ir.Node, scope: Scope) -> Kernel | str:
    """The merged kernel in the type of the layer's weight, or why it does not fit there."""
    view = LinearView.of(layer) if is_op(layer, *FULL_OPS) else ConvView.of(layer, scope)
    assert not isinstance(view, str)
    dtype = view.weight.dtype
    if dtype.kind not in "fV" and "float" not in str(dtype):
        return f"weights of type {dtype} cannot be added up exactly"
    if not kernel.form.windows and np.any(kernel.bias) and scope.rank(layer.outputs[0]) != 2:
        return "a MatMul that is not of rank 2 has no place for a bias"
    uniform = is_uniform(kernel.weight) and kernel.weight.size > 1
    with np.errstate(over="ignore"):
        bias = kernel.bias.astype(dtype)
        if uniform:
            number = kernel.weight.flat[0].astype(dtype)
            weight = np.broadcast_to(number, kernel.weight.shape)
        else:
            weight = kernel.weight.astype(dtype)
    if not (fits(weight) and fits(bias)):
        return f"the merged weights are too large for {dtype}"
    return Kernel(kernel.form, weight, compact(bias) if uniform else bias)


def _replace(scope: Scope, total: Total, pair: Pair, kernel: Kernel) -> None:
    change = Edit(scope, MergeBranches.name)
    rest = [term for k, term in enumerate(total.terms) if k not in (pair.first, pair.second)]
    whole = _emit(change, scope, pair, kernel)
    if is_op(total.root, "Sum") and rest:
        whole = change.like(total.root, [whole, *(value for value, _ in rest)])
    else:
        adders = total.nodes[: len(rest)][::-1]
        for (value, sign), node in zip(rest, adders, strict=True):
            hint = node.outputs[0].name or node.op_type
            operator = "Add" if sign > 0 else "Sub"
            whole = change.node(operator, [whole, value], hint=hint, name=node.name)
    removed = (*pair.nodes[0], *pair.nodes[1], *total.nodes)
    change.commit(removed, {total.root.outputs[0]: whole})


def _emit(change: Edit, scope: Scope, pair: Pair, kernel: Kernel) -> ir.Value:
    layers = [n for nodes in pair.nodes for n in nodes if is_op(n, *LAYER_OPS)]
    if kernel.form.windows:
        return _convolution(change, scope, layers, pair.source, kernel)
    hint = layers[0].outputs[0].name or layers[0].op_type
    weight = change.constant(kernel.weight.T, f"{hint}_weight")
    operands: list[ir.Value | None] = [pair.source, weight]
    gemm = any(is_op(layer, "Gemm") for layer in layers)
    if np.any(kernel.bias):
        operands.append(change.constant(kernel.bias, f"{hint}_bias"))
        gemm = True
    elif gemm and scope.opset < 11:  # the third input was not optional
        operands.append(change.constant(compact(kernel.bias), f"{hint}_bias"))
    return change.node("Gemm" if gemm else "MatMul", operands, hint=hint, name=layers[0].name)


def _convolution(
    change: Edit, scope: Scope, layers: list[ir.Node], source: ir.Value, kernel: Kernel
) -> ir.Value:
    views = [view for n in layers if not isinstance(view := ConvView.of(n, scope), str)]
    same = [view for view in views if form_of(view) == kernel.form]
    model = same[0] if same else max(views, key=lambda view: view.weight.size)
    hint = model.node.outputs[0].name or model.node.op_type
    operands: list[ir.Value | None] = [source, change.constant(kernel.weight, f"{hint}_weight")]
    if np.any(kernel.bias):
        operands.append(change.constant(kernel.bias, f"{hint}_bias"))
    if same:
        return change.like(model.node, operands)
    windows = kernel.form.windows
    attributes: dict[str, Any] = {
        "kernel_shape": [window.taps for window in windows],
        "pads": [*(w.before for w in windows), *(w.after for w in windows)],
        "strides": kernel.form.strides,
        "dilations": [window.dilation for window in windows],
        "group": kernel.form.group,
    }
    if model.auto_pad != "NOTSET":
        attributes["auto_pad"] = "NOTSET"
    return change.like(model.node, operands, attributes=attributes)
