"""Steps with weights: convolutions, normalization and affine constants."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fuzz.builder import Array, Builder, ImpossibleError, Shape, Value


def channels(x: Value) -> int:
    """Of a map [N, C, ...]."""
    if x.rank < 3:
        raise ImpossibleError("no map")
    return x.fixed(1)


def spatial(x: Value) -> int:
    """Number of spatial axes of a map."""
    channels(x)
    if x.rank > 5:
        raise ImpossibleError("too many axes")
    return x.rank - 2


def conv(
    b: Builder,
    x: Value,
    *,
    out: int | None = None,
    kernel: Shape | None = None,
    group: int | None = None,
    placing: dict[str, Any] | None = None,
) -> Value:
    """A convolution of any kind; what is given is not drawn."""
    n, c = spatial(x), channels(x)
    if out is None and b.rarely(2):
        out = c
    if group is None:
        group = b.pick(1, 1, 1, c, *(g for g in (2, 3, 4) if c % g == 0))
    out = out or group * b.pick(*range(max(1, 4 // group), max(1, 8 // group) + 1))
    if c % group or out % group:
        raise ImpossibleError("groups")
    kernel = kernel or tuple(b.pick(3, 1, 2, 3, 1) for _ in range(n))
    placing = _placing(b, kernel) if placing is None else placing
    _check_fits(x, kernel, placing)
    fan_in = c // group * math.prod(kernel)
    weight = b.weight(b.random((out, c // group, *kernel), fan_in**-0.5), "w")
    operands: list[Value | None] = [x, weight, *_bias(b, out)]
    shape = list(kernel) if not b.rarely(4) else None
    return b.add("Conv", operands, kernel_shape=shape, group=_unless(group, 1, b), **placing)


def _bias(b: Builder, out: int) -> list[Value | None]:
    form = b.pick("none", "given", "given", "empty")
    if form == "given":
        return [b.weight(b.random((out,), 0.5), "bias")]
    return [None] if form == "empty" else []


def _unless(value: int, default: int, b: Builder) -> int | None:
    return None if value == default and b.rarely(2) else value


def _placing(b: Builder, kernel: Shape) -> dict[str, Any]:
    """Pads, strides and dilations."""
    n = len(kernel)
    placing: dict[str, Any] = {}
    if b.rarely(4):
        placing["strides"] = [b.pick(1, 2) for _ in range(n)]
    if b.rarely(5):
        placing["dilations"] = [b.pick(1, 2) for _ in range(n)]
    dilations = placing.get("dilations", [1] * n)
    form = b.pick("same", "none", "any", "auto")
    if form == "same":
        total = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
        placing["pads"] = [*(t // 2 for t in total), *(t - t // 2 for t in total)]
    elif form == "any":
        placing["pads"] = [b.pick(0, 1, 2) for _ in range(2 * n)]
    elif form == "auto":
        placing["auto_pad"] = b.pick("SAME_UPPER", "SAME_LOWER", "VALID", "NOTSET")
        if placing["auto_pad"].startswith("SAME"):
            placing.pop("dilations", None)  # onnxruntime refuses both at once
    return placing


def _check_fits(x: Value, kernel: Shape, placing: dict[str, Any]) -> None:
    """Refuse a kernel that is larger than its padded input (onnx only rounds the size up to 1)."""
    if placing.get("auto_pad", "").startswith("SAME"):
        return
    n = len(kernel)
    pads, dilations = placing.get("pads", [0] * 2 * n), placing.get("dilations", [1] * n)
    for axis, size in enumerate(kernel):
        room = min(shape[axis + 2] for shape in x.shapes) + pads[axis] + pads[axis + n]
        if room < dilations[axis] * (size - 1) + 1:
            raise ImpossibleError("the kernel does not fit")


def same_placing(kernel: Shape, stride: int = 1) -> dict[str, Any]:
    """Pads (and a stride) that kernels of several sizes can share a place with."""
    pads = [*((k - 1) // 2 for k in kernel), *(k // 2 for k in kernel)]
    return {"pads": pads, **({"strides": [stride] * len(kernel)} if stride > 1 else {})}


def conv_same(b: Builder, x: Value) -> Value:
    """A convolution that keeps the shape."""
    kernel = tuple(b.pick(3, 1) for _ in range(spatial(x)))
    group = b.pick(1, 1, channels(x))
    return conv(b, x, out=channels(x), kernel=kernel, group=group, placing=same_placing(kernel))


def pointwise(b: Builder, x: Value) -> Value:
    """A 1x1 convolution."""
    return conv(b, x, kernel=(1,) * spatial(x), group=1, placing={})


def conv_transpose(b: Builder, x: Value) -> Value:
    """A transposed convolution."""
    n, c = spatial(x), channels(x)
    group = b.pick(1, 1, c, *(g for g in (2, 4) if c % g == 0))
    out = group * b.pick(*range(1, max(1, 6 // group) + 1))
    kernel = tuple(b.pick(2, 3, 1) for _ in range(n))
    strides = [b.pick(1, 2) for _ in range(n)]
    placing: dict[str, Any] = {"strides": strides}
    form = b.pick("none", "any", "auto", "extra")
    if form == "any":
        placing["pads"] = [b.pick(0, 1) for _ in range(2 * n)]
    elif form == "auto":
        placing["auto_pad"] = b.pick("SAME_UPPER", "SAME_LOWER", "VALID")
    elif form == "extra":
        placing["output_padding"] = [s - 1 for s in strides]
    if b.rarely(5):
        placing["dilations"] = [b.pick(1, 2) for _ in range(n)]
    deviation = (c // group * math.prod(kernel) / math.prod(strides)) ** -0.5
    weight = b.weight(b.random((c, out // group, *kernel), deviation), "w")
    operands = [x, weight, *_bias(b, out)]
    return b.add("ConvTranspose", operands, group=group, kernel_shape=list(kernel), **placing)


def batch_norm(b: Builder, x: Value) -> Value:
    """A BatchNormalization; a few of them in training mode."""
    if x.rank < 2:
        raise ImpossibleError("no channels")
    c = x.fixed(1)
    rng, dtype = b.store.rng, b.store.dtype
    statistics = [
        b.factors((c,)),
        b.random((c,), 0.5),
        b.random((c,), 0.5),
        rng.uniform(0.5, 2.0, (c,)).astype(dtype),
    ]
    epsilon = b.pick(None, 1e-3, 1e-5, 0.1)
    if b.opset >= 14 and b.rarely(12):
        # onnxruntime updates the statistics in place: nobody else may read them
        operands = [x, *(b.initializer(array) for array in statistics)]
        outputs = b.pick(3, 1)
        made = b.add_many("BatchNormalization", operands, outputs, epsilon=epsilon, training_mode=1)
        return made[0]
    operands = [x, *(b.weight(a, role) for a, role in zip(statistics, "gbmv", strict=True))]
    spatial_flag = b.pick(None, 1) if b.opset < 9 else None
    return b.add("BatchNormalization", operands, epsilon=epsilon, spatial=spatial_flag)


def conv_bn(b: Builder, x: Value) -> Value:
    return batch_norm(b, conv(b, x))


def conv_affine(b: Builder, x: Value) -> Value:
    return affine(b, b.pick(conv, conv_same, conv_transpose)(b, x))


def bn_conv(b: Builder, x: Value) -> Value:
    return conv(b, batch_norm(b, x))


def affine(b: Builder, x: Value) -> Value:
    """Mul, Div, Add or Sub with a constant of any broadcastable shape, on either side."""
    op = b.pick("Mul", "Add", "Sub", "Div")
    array = _affine_constant(b, x)
    if b.rarely(8):
        array = np.full_like(array, op in ("Mul", "Div"))  # without effect, unless it widens
    operand = b.weight(array, "affine")
    if b.rarely(3):
        if op == "Div":  # keeps away from zero: a quotient by it would only measure rounding
            x = b.add("Add", [x, b.scalar(6.0)])
        return b.add(op, [operand, x])
    return b.add(op, [x, operand])


def channel_affine(b: Builder, x: Value) -> Value:
    """An affine constant per channel, as an unfolded normalization has it."""
    c = channels(x)
    operand = b.weight(b.factors((c, *[1] * (x.rank - 2))), "affine")
    return b.add(b.pick("Mul", "Add", "Sub", "Div"), [x, operand])


def _affine_constant(b: Builder, x: Value) -> Array:
    rank = x.rank
    sizes = [x.size(axis) or 1 for axis in range(rank)]
    form = b.pick("channel", "axis", "axis", "scalar", "ones", "two", "full", "widen")
    shape = [1] * rank
    if form == "channel" and rank >= 2:
        shape[1] = sizes[1]
    elif form == "axis" and rank:
        axis = b.pick(*range(rank))
        shape[axis] = sizes[axis]
    elif form == "two" and rank >= 2:
        first = b.pick(*range(rank - 1))
        shape[first : first + 2] = sizes[first : first + 2]
    elif form == "full":
        shape = list(sizes)
    elif form == "widen":
        narrow = [axis for axis in range(rank) if x.size(axis) == 1]
        if narrow:
            shape[b.pick(*narrow)] = 2
        elif rank < 5 and b.rarely(3):
            shape = [b.pick(1, 2), *shape]
    if form == "scalar" or b.rarely(2):
        while shape and shape[0] == 1:
            shape.pop(0)
    return b.factors(tuple(shape))


def unfolded_norm(b: Builder, x: Value) -> Value:
    """(x - m) / s * g + t."""
    c, tail = channels(x), [1] * (x.rank - 2)
    y = b.add("Sub", [x, b.weight(b.random((c, *tail), 0.5), "affine")])
    y = b.add("Div", [y, b.weight(b.factors((c, *tail)), "affine")])
    y = b.add("Mul", [y, b.weight(b.factors((c, *tail)), "affine")])
    return b.add("Add", [y, b.weight(b.random((c, *tail), 0.5), "affine")])
