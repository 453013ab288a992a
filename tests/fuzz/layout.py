"""Steps that move things about: transposing, reshaping, cutting and joining."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from fuzz.builder import Builder, ImpossibleError, Value, squeeze, unsqueeze
from fuzz.dense import matmul, reshape_to
from fuzz.linear import affine, channels
from fuzz.pointwise import activation, noise

Step = Callable[[Builder, Value], Value]


def transpose_pair(b: Builder, x: Value) -> Value:
    """To channels last, something there, and back: as tf2onnx writes it."""
    if x.rank < 2:
        raise ImpossibleError("nothing to transpose")
    order = [0, *range(2, x.rank), 1] if x.rank > 2 else [1, 0]
    if b.rarely(5):
        order = b.pick([*reversed(range(x.rank))], [1, 0, *range(2, x.rank)], list(range(x.rank)))
    y = b.add("Transpose", [x], perm=order)
    for _ in range(b.pick(1, 0, 2)):
        y = b.pick(activation, affine, matmul, noise, _last_axis_concat)(b, y)
    if y.rank != x.rank:
        return y
    back = [int(axis) for axis in np.argsort(order)]
    if b.rarely(6):
        back = order
    return b.add("Transpose", [y], perm=back)


def _last_axis_concat(b: Builder, x: Value) -> Value:
    return b.add("Concat", [x, b.add("Relu", [x])], axis=x.rank - 1)


def transpose(b: Builder, x: Value) -> Value:
    """One on its own: it exchanges the last two axes, or turns maps to channels last."""
    if x.rank < 2:
        raise ImpossibleError("nothing to transpose")
    swapped = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    return b.add("Transpose", [x], perm=swapped)


# -- reshaping ---------------------------------------------------------------------------------


def reshape_chain(b: Builder, x: Value) -> Value:
    """There and back, or there and somewhere else."""
    return b.pick(_fold_space, _unit_axis, _same_shape, _flat_and_back, shuffle, _by_shape)(b, x)


def _sizes(x: Value) -> list[int]:
    """The target that keeps a shape: numbers, 0 where open."""
    return [x.size(axis) or 0 for axis in range(x.rank)]


def _between(b: Builder, x: Value) -> Value:
    step: Step | None = b.pick(None, None, activation, noise, affine)
    return x if step is None else step(b, x)


def _fold_space(b: Builder, x: Value) -> Value:
    """[N, C, H, W] -> [N, C, HW] -> [N, C, H, W]."""
    c = channels(x)
    tail = [x.fixed(axis) for axis in range(2, x.rank)]
    y = b.add("Reshape", [x, b.ints([0, b.pick(0, c), b.pick(-1, math.prod(tail))])])
    y = _between(b, y)
    if y.rank != 3:
        return y
    return b.add("Reshape", [y, b.ints([0, c, *tail])])


def _unit_axis(b: Builder, x: Value) -> Value:
    if x.rank > 4:
        raise ImpossibleError("too many axes")
    axis = b.pick(*range(x.rank + 1))
    y = _between(b, unsqueeze(b, x, [axis]))
    if y.rank != x.rank + 1:
        return y
    if y.size(axis) != 1:
        return y
    return squeeze(b, y, [axis - (y.rank if b.rarely(3) and b.opset >= 11 else 0)])


def _same_shape(b: Builder, x: Value) -> Value:
    sizes = _sizes(x)
    return b.add("Reshape", [_between(b, x), b.ints(sizes)])


def _flat_and_back(b: Builder, x: Value) -> Value:
    if x.rank < 3:
        raise ImpossibleError("nothing to flatten")
    tail = [x.fixed(axis) for axis in range(1, x.rank)]
    y = _between(b, b.add("Flatten", [x], axis=1))
    if y.rank != 2:
        return y
    return b.add("Reshape", [y, b.ints([b.pick(0, -1), *tail])])


def shuffle(b: Builder, x: Value) -> Value:
    """ShuffleNet's exchange of channels between groups."""
    c = channels(x)
    if c % 2 or x.rank > 4:
        raise ImpossibleError("odd")
    tail = [x.fixed(axis) for axis in range(2, x.rank)]
    y = b.add("Reshape", [x, b.ints([0, 2, c // 2, *tail])])
    y = b.add("Transpose", [y], perm=[0, 2, 1, *range(3, y.rank)])
    return b.add("Reshape", [y, b.ints([0, c, *tail])])


def _by_shape(b: Builder, x: Value) -> Value:
    """Reshaped to the shape it has, which is computed from itself."""
    b.needs(13)
    return reshape_to(b, x, b.add("Shape", [x]), x.shapes)


# -- cutting -----------------------------------------------------------------------------------


def cut(b: Builder, x: Value, start: int, end: int, axis: int, step: int = 1) -> Value:
    """A Slice in the form the operator set has."""
    if b.opset < 10:
        if step != 1:
            raise ImpossibleError("no steps yet")
        return b.add("Slice", [x], starts=[start], ends=[end], axes=[axis])
    operands = [x, b.ints([start]), b.ints([end]), b.ints([axis])]
    return b.add("Slice", [*operands, b.ints([step])] if step != 1 or b.rarely(2) else operands)


def split(b: Builder, x: Value, parts: Sequence[int], axis: int) -> list[Value]:
    """A Split in the form the operator set has."""
    if b.opset < 13:
        return b.add_many("Split", [x], len(parts), split=list(parts), axis=axis)
    if b.opset >= 18 and len(set(parts)) == 1 and b.rarely(2):
        return b.add_many("Split", [x], len(parts), num_outputs=len(parts), axis=axis)
    return b.add_many("Split", [x, b.ints(parts)], len(parts), axis=axis)


def _parts(b: Builder, size: int) -> list[int]:
    first = b.pick(size // 2, 1)
    return [first, size - first]


def cut_and_joined(b: Builder, x: Value) -> Value:
    """Split or sliced, perhaps something on a part, and concatenated: in order or not."""
    axis = b.pick(*range(1, x.rank)) if x.rank > 1 else 0
    size = x.fixed(axis)
    if size < 2:
        raise ImpossibleError("nothing to cut")
    parts = _parts(b, size)
    if b.rarely(2):
        made = split(b, x, parts, b.pick(axis, axis - x.rank) if b.opset >= 11 else axis)
    else:
        last = b.pick(size, 2**31 - 1)
        made = [cut(b, x, 0, parts[0], axis), cut(b, x, parts[0], last, axis)]
    if b.rarely(3):
        made[1] = activation(b, made[1])
    if b.rarely(6):
        made = made[::-1]
    if b.rarely(6):
        made = [*made, made[0]]
    return b.add("Concat", made, axis=b.pick(axis, axis if b.opset < 11 else axis - x.rank))


def joined_and_cut(b: Builder, x: Value) -> Value:
    """Concatenated and split again, at the seam or beside it."""
    if x.rank < 2:
        raise ImpossibleError("one axis")
    y = activation(b, x)
    size = x.fixed(1)
    joined = b.add("Concat", [x, y], axis=1)
    seam = size if not b.rarely(4) or size < 2 else size - 1
    if b.rarely(2):
        return b.pick(*split(b, joined, [seam, 2 * size - seam], 1))
    return b.pick(cut(b, joined, 0, seam, 1), cut(b, joined, seam, 2 * size, 1))


def sliced(b: Builder, x: Value) -> Value:
    """One Slice: of everything, with a step, backwards."""
    axis = b.pick(*range(x.rank)) if x.rank else 0
    form = b.pick("all", "step", "backwards", "some")
    if form == "all":
        return cut(b, x, 0, 2**31 - 1, axis)
    if form == "step":
        return cut(b, x, 0, 2**31 - 1, axis, 2)
    if form == "backwards":
        return cut(b, x, -1, -(2**31), axis, -1)
    return cut(b, x, 1 if min(s[axis] for s in x.shapes) > 1 else 0, 2**31 - 1, axis)


def gathered(b: Builder, x: Value) -> Value:
    """Channels picked by index."""
    c = channels(x)
    indices = b.pick(list(range(c)), list(range(c))[::-1], [0], [c - 1, 0])
    return b.add("Gather", [x, b.ints(indices)], axis=1)
