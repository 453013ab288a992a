"""Shared by the fusions: a linear operator seen from its input, and an affine map folded into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.factorize.affine import compact, fits, is_uniform, scale_axis
from graphopt.graph.constants import constant, is_splat
from graphopt.graph.edit import Edit
from graphopt.graph.scope import Scope, attribute_float, attribute_int, is_op
from graphopt.graph.views import CONV_OPS, ConvView, LinearView

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LinearInput:
    """A convolution, Gemm or MatMul into which an affine map of its input can go.

    weight: as stored: Conv, DeformConv [O, C/g, *kernel]; ConvTranspose [C, O/g, *kernel]; MatMul,
    Gemm [C, O] or, transposed, [O, C]; `weight_axis` runs over the inputs. factor: what a Gemm
    multiplies its weight by. bias: [O] or None. channels: C. channel_axis, rank: of the input.
    obstacle: why a number added to the input is no bias; None if it is one.
    """

    node: ir.Node
    weight: Array
    weight_axis: int
    bias: Array | None
    channels: int
    channel_axis: int
    rank: int
    group: int = 1
    factor: float = 1.0
    obstacle: str | None = None

    @classmethod
    def of(cls, node: ir.Node, scope: Scope) -> LinearInput | str:
        """The operator at a node, or why there is none."""
        if is_op(node, *CONV_OPS):
            conv = ConvView.of(node, scope)
            if isinstance(conv, str):
                return conv
            return cls(
                node,
                conv.weight,
                0 if conv.transposed else 1,
                conv.bias,
                conv.in_channels,
                channel_axis=1,
                rank=conv.weight.ndim,
                group=conv.group,
                obstacle=_border(conv),
            )
        linear, stored = LinearView.of(node), constant(node.inputs[1])
        rank = 2 if is_op(node, "Gemm") else scope.rank(node.inputs[0])
        if isinstance(linear, str):
            return linear
        if rank is None or stored is None:
            return "the rank of the input is unknown"
        return cls(
            node,
            stored,
            attribute_int(node, "transB", 0),
            linear.bias,
            linear.weight.shape[0],
            channel_axis=-1,
            rank=rank,
            factor=attribute_float(node, "alpha", 1.0) if is_op(node, "Gemm") else 1.0,
            obstacle=None if rank == 2 else "a MatMul that is not of rank 2 has no bias",
        )

    def scaled(self, scale: Array) -> Array:
        """The weight with what each input channel contributes multiplied by its scale [C]."""
        if self.weight_axis == 0 or self.group == 1 or np.all(scale == scale.flat[0]):
            scale = scale if self._runs_over_all else scale[: self.weight.shape[1]]
            return scale_axis(self.weight, scale, self.weight_axis)
        # [O, C/g, ...]: group i of the outputs reads group i of the inputs.
        parts = [scale_axis(self.weight[rows], scale[inputs], 1) for rows, inputs in self._groups()]
        return np.concatenate(parts)

    def response(self, shift: Array) -> Array:
        """What the output grows by [O] (float64) where every input channel grows by its shift [C]."""
        if is_uniform(self.weight):
            return self._uniform_response(shift)
        if is_op(self.node, "Conv"):
            sums = [
                _flat(self.weight[row]).sum(axis=1) @ shift[inputs]
                for rows, inputs in self._groups()
                for row in range(rows.start, rows.stop)
            ]
            return np.asarray(sums)
        if self.weight_axis == 1:  # [O, C]
            sums = [_flat(row).ravel() @ shift for row in self.weight]
            return self.factor * np.asarray(sums)
        blocks = np.split(np.arange(self.channels), self.group)
        sums = [sum(shift[c] * _flat(self.weight[c]).sum(axis=1) for c in b) for b in blocks]
        return self.factor * np.concatenate(sums)

    def keeps_precision(self, scale: Array, scaled: Array) -> bool:
        """Whether no input channel's weights got lost among the subnormals when they were scaled."""
        smallest = np.abs(scale[scale != 0]).min(initial=1.0)
        if self.weight.dtype.itemsize > 2 and smallest > 1e-20:
            return True
        one, two = self.weight.dtype.type(1), self.weight.dtype.type(2)
        unit = float(np.nextafter(one, two)) - 1.0  # np.finfo does not know bfloat16
        for before, after, factor in self._slices(scale, scaled):
            exact = before.astype(np.float64) * factor
            lost = float(np.linalg.norm(after.astype(np.float64) - exact))
            if lost > unit * float(np.linalg.norm(exact)):  # half of it where nothing is lost
                return False
        return True

    @property
    def _runs_over_all(self) -> bool:
        return int(self.weight.shape[self.weight_axis]) == self.channels

    def _groups(self) -> Iterator[tuple[slice, slice]]:
        """Per group of a Conv: its outputs and its inputs."""
        outputs, inputs = self.weight.shape[0] // self.group, self.weight.shape[1]
        for i in range(self.group):
            yield (
                slice(i * outputs, (i + 1) * outputs),
                slice(i * inputs, (i + 1) * inputs),
            )

    def _slices(self, scale: Array, scaled: Array) -> Iterator[tuple[Array, Array, float]]:
        """Per input channel (and group): its weights before and after, and its scale."""
        if is_uniform(scaled):
            yield self.weight.flat[:1], scaled.flat[:1], float(scale[0])
            return
        whole = slice(None), slice(0, self.channels)
        grouped = self.group > 1 and self.weight_axis == 1
        for rows, inputs in self._groups() if grouped else (whole,):
            before = np.moveaxis(self.weight[rows], self.weight_axis, 0)
            after = np.moveaxis(scaled[rows], self.weight_axis, 0)
            yield from zip(before, after, scale[inputs].tolist(), strict=True)

    def _uniform_response(self, shift: Array) -> Array:
        taps = int(np.prod(self.weight.shape[2:]))
        sums = (
            self.factor * float(self.weight.flat[0]) * taps * shift.reshape(self.group, -1).sum(1)
        )
        other = self.weight.shape[1 - self.weight_axis]
        outputs = other if is_op(self.node, "Conv") else other * self.group
        return np.repeat(sums, outputs // self.group)


def _flat(weights: Array) -> Array:
    """The slice of one channel as float64 [other channels, kernel]."""
    return weights.astype(np.float64).reshape(len(weights), -1)


def _border(conv: ConvView) -> str | None:
    """Why a number added to the input of a convolution is no bias."""
    if conv.offset_group:
        return "it samples its input, and outside of it zeros, to which nothing is added"
    if conv.pads is None:
        return "how far it pads depends on the size of its input"
    if not conv.transposed:
        return "it pads with zeros, to which nothing is added" if any(conv.pads) else None
    pointwise = all(k == s == 1 for k, s in zip(conv.kernel, conv.strides, strict=True))
    if pointwise and not any(conv.output_padding) and min(conv.pads) >= 0:
        return None
    return "the pixels of a transposed convolution see different parts of its kernel"


def fold_input(
    rewrite: str,
    scope: Scope,
    target: LinearInput,
    removed: tuple[ir.Node, ...],
    source: ir.Value,
    scale: Array,
    shift: Array,
    kept: Array | None = None,
) -> Callable[[], None] | str:
    """The edit after which `target` reads `source` in place of scale * (source + kept) + shift.

    removed: the nodes that computed that, in order. scale, shift: [C] or [1]. kept: what an Add
    that stays adds, shaped to broadcast and in the type of the source; None for nothing.
    """
    if target.weight.dtype.kind != "f" and "float" not in target.weight.dtype.name:
        return f"weights of type {target.weight.dtype} cannot be scaled"
    full_scale = np.broadcast_to(np.asarray(scale, np.float64), (target.channels,))
    full_shift = np.broadcast_to(np.asarray(shift, np.float64), (target.channels,))
    if not np.all(np.isfinite(full_scale)) or not np.all(np.isfinite(full_shift)):
        return "a constant is not finite"
    scales, shifts = not np.all(full_scale == 1.0), bool(np.any(full_shift))
    if shifts and target.obstacle is not None:
        return target.obstacle
    if scales and is_splat(target.weight) and np.any(full_scale != full_scale[0]):
        return "a generated weight would have to be stored"
    weight = target.scaled(full_scale) if scales else target.weight
    bias = _bias(target, full_shift) if shifts else None
    if not (fits(weight) and fits(bias)):
        return f"the folded weights are too large for {target.weight.dtype}"
    if scales and not target.keeps_precision(full_scale, weight):
        return f"the folded weights are too small for {target.weight.dtype}"

    def edit() -> None:
        change = Edit(scope, rewrite)
        node, value = target.node, source
        hint = node.outputs[0].name or node.op_type
        if kept is not None:
            between = removed[-1]
            operands = [source, change.constant(kept, f"{hint}_offset")]
            made_for = between.outputs[0].name or hint
            value = change.node("Add", operands, hint=made_for, name=between.name)
        stored = change.constant(weight, f"{hint}_weight") if scales else node.inputs[1]
        if bias is None:
            new = change.like(node, [value, stored, *node.inputs[2:]])
        else:
            new = _biased(change, node, [value, stored, change.constant(bias, f"{hint}_bias")])
        change.commit((*removed, node), {node.outputs[0]: new})

    return edit


def _bias(target: LinearInput, shift: Array) -> Array:
    total = target.response(shift)
    if target.bias is not None:
        total = total + target.bias.astype(np.float64)
    with np.errstate(over="ignore"):  # the caller asks whether it `fits`
        bias = total.astype(target.weight.dtype)
    return compact(bias) if is_uniform(target.weight) else bias


def _biased(change: Edit, node: ir.Node, operands: list[ir.Value | None]) -> ir.Value:
    """The operator with a new bias; a MatMul becomes a Gemm, which has one."""
    if is_op(node, "MatMul"):
        hint = node.outputs[0].name or node.op_type
        return change.node("Gemm", operands, hint=hint, name=node.name)
    return change.like(
        node, operands, attributes={"beta": 1.0} if "beta" in node.attributes else {}
    )
