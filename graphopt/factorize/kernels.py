"""Convolutions as arrays that can be added and, where one is pointwise, composed.

A `Form` is everything about a convolution but its numbers: channels, groups, strides and one
`Window` an axis. A fully connected layer is the one without axes. What is found out from forms
alone (whether two can be added, what that would cost) is found out before an array is touched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.factorize.affine import is_uniform

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Window:
    """What a kernel sees along one axis: tap j of the output at 0 reads the input at j d - before."""

    taps: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0

    @property
    def growth(self) -> int:
        """How much longer the output is than the input, at stride 1."""
        return self.before + self.after - self.dilation * (self.taps - 1)

    def outputs(self, size: int, stride: int) -> int:
        """Length of the output for an input of this size."""
        return (size + self.growth - 1) // stride + 1

    def join(self, other: Window, stride: int, size: int | None) -> Window | str:
        """The smallest window that holds the taps of both, or why there is none.

        size: of the input along the axis, None if it is open; strided windows of different growth
        give equally long outputs for some sizes only.
        """
        dilations = {window.dilation for window in (self, other) if window.taps > 1}
        if len(dilations) > 1:
            return "the branches have different dilations"
        dilation = dilations.pop() if dilations else 1
        before = max(self.before, other.before)
        if (self.before - other.before) % dilation:
            return "the kernels lie between one another's taps"
        if self.growth != other.growth and (
            size is None or self.outputs(size, stride) != other.outputs(size, stride)
        ):
            return "the pads of the branches do not agree"
        taps = max((before - w.before) // dilation + w.taps for w in (self, other))
        return Window(taps, dilation, before, self.growth + dilation * (taps - 1) - before)

    def place(self, within: Window) -> slice:
        """Where this window's taps are in the kernel of one that holds it."""
        start = (within.before - self.before) // within.dilation
        return slice(start, start + self.taps)


_POINT = Window()


@dataclass(frozen=True)
class Form:
    """A convolution without its numbers. strides, windows: one an axis."""

    outputs: int
    inputs: int
    group: int
    strides: tuple[int, ...]
    windows: tuple[Window, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight: [O, C/g, *taps]."""
        taps = (window.taps for window in self.windows)
        return (self.outputs, self.inputs // self.group, *taps)

    @property
    def weights(self) -> int:
        """Elements of the weight, which are the multiplications per position of the output."""
        return math.prod(self.shape)

    @property
    def is_pointwise(self) -> bool:
        """Whether every output position depends on the same position of the input."""
        return all(s == 1 for s in self.strides) and all(w == _POINT for w in self.windows)

    def then(self, after: Form) -> Form | str:
        """The form of `after` applied to what this computes, or why it is not one convolution."""
        if after.inputs != self.outputs:
            return "the channels do not fit"
        if not (self.is_pointwise or after.is_pointwise):
            return "two kernels follow one another"
        spatial = after if self.is_pointwise else self
        group = math.gcd(self.group, after.group)
        return Form(after.outputs, self.inputs, group, spatial.strides, spatial.windows)

    def join(self, other: Form, sizes: Sequence[int | None]) -> Form | str:
        """The form of the sum of two convolutions of one input, or why that is none.

        sizes: of the input along each axis, None where open.
        """
        if (self.outputs, self.inputs) != (other.outputs, other.inputs):
            return "the branches differ in channels"
        if self.strides != other.strides:
            return "the branches have different strides"
        windows: list[Window] = []
        for a, b, stride, size in zip(
            self.windows, other.windows, self.strides, sizes, strict=True
        ):
            joined = a.join(b, stride, size)
            if isinstance(joined, str):
                return joined
            windows.append(joined)
        group = math.gcd(self.group, other.group)
        return Form(self.outputs, self.inputs, group, self.strides, tuple(windows))


@dataclass(frozen=True)
class Kernel:
    """A convolution. weight: [O, C/g, *taps]; bias: [O]. Sums and compositions are float64."""

    form: Form
    weight: Array
    bias: Array

    def then(self, after: Kernel) -> Kernel | str:
        """`after` applied to this: weights multiplied channel by channel.

            W[o, c, u] = sum_m B[o, m, u] A[m, c]          b = sum_m,u B[o, m, u] a[m] + b_after

        A bias in front of a padded kernel does not reach into the padding, so it is no bias of the
        whole.
        """
        form = self.form.then(after.form)
        if isinstance(form, str):
            return form
        if np.any(self.bias) and any(w.before or w.after for w in after.form.windows):
            return "a bias before a padded kernel"
        first, second = regroup(self.weight, self.form.group, form.group), after.weight
        second = regroup(second, after.form.group, form.group)
        groups = form.group
        first = first.reshape(groups, first.shape[0] // groups, first.shape[1], -1)
        second = second.reshape(groups, second.shape[0] // groups, second.shape[1], -1)
        blocks = [
            np.tensordot(b, a, axes=(1, 0)).transpose(0, 2, 1, 3)  # [o, u, c, v]; u or v is 1 long
            for a, b in zip(_double(first), _double(second), strict=True)
        ]
        inner = _double(self.bias).reshape(groups, -1, 1)
        shift = (_double(second).sum(axis=3) @ inner).reshape(-1)
        return Kernel(form, np.concatenate(blocks).reshape(form.shape), shift + _double(after.bias))

    def plus(self, other: Kernel, form: Form, signs: tuple[int, int] = (1, 1)) -> Kernel:
        """The signed sum of both, in the form that `Form.join` found for it."""
        bias = signs[0] * _double(self.bias) + signs[1] * _double(other.bias)
        if self.form == other.form and is_uniform(self.weight) and is_uniform(other.weight):
            first, second = (np.float64(kernel.weight.flat[0]) for kernel in (self, other))
            number = signs[0] * first + signs[1] * second
            return Kernel(form, np.broadcast_to(number, form.shape), bias)
        weight = np.zeros(form.shape)
        for sign, kernel in zip(signs, (self, other), strict=True):
            windows = zip(kernel.form.windows, form.windows, strict=True)
            place: tuple[Any, ...] = (..., *(small.place(within) for small, within in windows))
            regrouped = regroup(kernel.weight, kernel.form.group, form.group)
            weight[place] += sign * _double(regrouped)
        return Kernel(form, weight, bias)


def diagonal(scale: Array, spatial: int) -> Kernel:
    """The map y = scale * x per channel, as a depthwise 1x1 kernel. scale: [C]."""
    form = Form(scale.size, scale.size, scale.size, (1,) * spatial, (_POINT,) * spatial)
    return Kernel(form, scale.astype(np.float64).reshape(form.shape), np.zeros(scale.size))


def regroup(weight: Array, group: int, target: int) -> Array:
    """The weight of a grouped convolution as that of one with fewer groups, zeros in between.

    weight: [O, C/group, *taps]. target: divides group. Returns [O, C/target, *taps].
    """
    if target == group:
        return weight
    outputs, inputs = weight.shape[:2]
    merged = group // target
    out = np.zeros((outputs, merged, inputs, *weight.shape[2:]), weight.dtype)
    index = np.arange(outputs)
    out[index, index // (outputs // group) % merged] = weight
    return out.reshape(outputs, merged * inputs, *weight.shape[2:])


def _double(array: Array) -> Array:
    return np.asarray(array, np.float64)
