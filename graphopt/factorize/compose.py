"""Two linear operators in a row as one: the algebra of the composition, for convolutions and matrices.

A convolution reads, at output position p, the taps p s + u d - b (stride s, dilation d, begin pad b).
Two in a row read p s1 s2 + (u1 d1 + u2 d2 s1) - (b1 + b2 s1), which is one convolution again:

    W[o, c, u1 d1 + u2 d2 s1] = sum_m W2[o, m, u2] W1[m, c, u1]        b = b2 + sum_(m, u) W2[o, m, u] b1[m]

Computed in float64; the caller rounds once. Arrays of one repeated element stay so where they can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphopt.factorize.affine import is_uniform

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Window:
    """What a convolution reads, per spatial axis. pads: all begins, then all ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def plain(cls, kernel: tuple[int, ...]) -> Window:
        """A kernel moved by one, without holes and without pads."""
        return cls(kernel, (1,) * len(kernel), (1,) * len(kernel), (0,) * (2 * len(kernel)))

    @property
    def spans(self) -> tuple[int, ...]:
        """Distance from the first tap to the last, per axis."""
        return tuple(d * (k - 1) for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def taps(self) -> int:
        """Elements of the kernel."""
        return math.prod(self.kernel)


def compose_windows(first: Window, second: Window) -> Window:
    """The window of both in a row; holes that no common dilation explains become zero taps.

    The output size is that of the two for every input size: floor(floor(a / s1) / s2) =
    floor(a / (s1 s2)). What is computed at the border is the same only if `borders_agree`.
    """
    axes = range(len(first.kernel))
    dilations = tuple(math.gcd(*_steps(first, second, axis)) or 1 for axis in axes)
    spans = [first.spans[i] + first.strides[i] * second.spans[i] for i in axes]
    return Window(
        kernel=tuple(spans[i] // dilations[i] + 1 for i in axes),
        strides=tuple(first.strides[i] * second.strides[i] for i in axes),
        dilations=dilations,
        pads=tuple(
            p1 + p2 * s1
            for p1, p2, s1 in zip(first.pads, second.pads, first.strides * 2, strict=True)
        ),
    )


def borders_agree(first: Window, second: Window) -> bool:
    """Whether the first, without a bias, gives zeros wherever the second one pads with zeros.

    The composition computes the first one's values there. They are zero when no tap reaches a
    pixel: always for a pointwise one, else where it is padded by its whole extent.
    """
    rank = len(first.kernel)
    for axis in range(rank):
        begin, end = second.pads[axis], second.pads[axis + rank]
        whole = first.spans[axis]
        if min(begin, end, first.pads[axis], first.pads[axis + rank]) < 0:
            return False
        if begin and first.pads[axis] <= whole - first.strides[axis]:
            return False
        if end and first.pads[axis + rank] < whole:
            return False
    return True


def compose_kernels(
    first: Array, second: Array, groups: tuple[int, int], windows: tuple[Window, Window]
) -> Array:
    """The weight [O, C/g, *kernel] of both in a row, float64, with g = gcd of their groups.

    first: [M, C/g1, *kernel]. second: [O, M/g2, *kernel].
    """
    g = math.gcd(*groups)
    kernel = compose_windows(*windows).kernel
    if stays_uniform(first, second, groups):
        number = float(first.flat[0]) * float(second.flat[0]) * second.shape[1]
        return np.broadcast_to(np.float64(number), (second.shape[0], first.shape[1], *kernel))
    inner, outer = _blocks(first, groups[0], g), _blocks(second, groups[1], g)
    rank = len(kernel)
    out = np.zeros((*kernel, g, outer.shape[rank + 1], inner.shape[rank + 2]))
    dilations = compose_windows(*windows).dilations
    steps = [_steps(*windows, axis) for axis in range(rank)]
    for u2 in np.ndindex(*windows[1].kernel):
        for u1 in np.ndindex(*windows[0].kernel):
            place = tuple(
                (a * step[0] + b * step[1]) // d
                for a, b, step, d in zip(u1, u2, steps, dilations, strict=True)
            )
            out[place] += outer[u2] @ inner[u1]
    moved = np.moveaxis(out, tuple(range(rank)), tuple(range(-rank, 0)))
    return moved.reshape(second.shape[0], -1, *kernel)


def stays_uniform(first: Array, second: Array, groups: tuple[int, int]) -> bool:
    """Whether the composition of two generated weights is one repeated number again.

    Not if taps of both overlap, which they do more often in the middle, nor with groups that differ.
    """
    pointwise = math.prod(first.shape[2:]) == 1 or math.prod(second.shape[2:]) == 1
    return is_uniform(first) and is_uniform(second) and pointwise and groups[0] == groups[1]


def compose_bias(
    first: Array | None, last: Array | None, second: Array, group: int
) -> Array | None:
    """The bias [O] of both in a row, float64; None if neither has one.

    first: [M] of the first one; last: [O] of the second one, whose weight is second [O, M/g, ...].
    Right only where the second one does not pad.
    """
    total = None if last is None else np.asarray(last, np.float64)
    if first is None:
        return total
    summed = second.sum(axis=tuple(range(2, second.ndim)), dtype=np.float64)
    blocks = summed.reshape(group, -1, second.shape[1])
    carried: Array = (blocks @ np.asarray(first, np.float64).reshape(group, -1, 1)).reshape(-1)
    return carried if total is None else carried + total


def cancellation(first: Array, second: Array, composed: Array) -> float:
    """How much larger the factors are than what is left of them: the share of it that is rounding.

    About the square root of the channels in between for unrelated factors, infinite where they
    annihilate each other.
    """
    factors = float(np.linalg.norm(_wide(first)) * np.linalg.norm(_wide(second)))
    left = float(np.linalg.norm(_wide(composed)))
    return factors / left if left > 0 else (np.inf if factors > 0 else 1.0)


def rounded(array: Array, dtype: Any) -> Array:
    """The array in a narrower type; a repeated number stays one. Infinite where it does not fit."""
    with np.errstate(over="ignore"):
        if is_uniform(array):
            return np.broadcast_to(np.asarray(array.flat[0]).astype(dtype), array.shape)
        return array.astype(dtype)


def swap_channels(weight: Array, group: int) -> Array:
    """[C, O/g, *kernel] of a transposed convolution as [O, C/g, *kernel], or back."""
    blocks = weight.reshape(group, -1, *weight.shape[1:]).swapaxes(1, 2)
    return blocks.reshape(-1, *blocks.shape[2:])


def _steps(first: Window, second: Window, axis: int) -> tuple[int, int]:
    """How far a tap of the first and one of the second moves the input pixel; 0: there is one tap."""
    return (
        first.dilations[axis] if first.kernel[axis] > 1 else 0,
        second.dilations[axis] * first.strides[axis] if second.kernel[axis] > 1 else 0,
    )


def _blocks(weight: Array, group: int, blocks: int) -> Array:
    """A grouped weight [O, C/group, *kernel] as [*kernel, blocks, O/blocks, C/blocks], float64.

    blocks divides group: the groups inside one block lie on its diagonal.
    """
    rank, inside = weight.ndim - 2, group // blocks
    outputs, inputs = weight.shape[0] // group, weight.shape[1]
    parts = weight.reshape(blocks, inside, outputs, inputs, *weight.shape[2:])
    parts = np.moveaxis(parts, tuple(range(4, 4 + rank)), tuple(range(rank)))
    out = np.zeros((*weight.shape[2:], blocks, inside, outputs, inside, inputs))
    for index in range(inside):
        out[..., index, :, index, :] = parts[..., index, :, :]
    return out.reshape(*weight.shape[2:], blocks, inside * outputs, inside * inputs)


def _wide(array: Array) -> Array:
    """As float64, flat; one element with the norm of all for a repeated number."""
    if is_uniform(array):
        return np.asarray([float(array.flat[0]) * math.sqrt(array.size)])
    return array.astype(np.float64).reshape(-1)
