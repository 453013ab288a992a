"""Padding, pooling and resizing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fuzz.builder import Builder, Value, unsqueeze
from fuzz.linear import conv, spatial


def pad(b: Builder, x: Value, mode: str | None = None, fill: float | None = None) -> Value:
    """A Pad of the spatial axes, at times of others too."""
    n = spatial(x)
    mode = mode or b.pick("constant", "constant", "reflect", "edge")
    sizes = [1, 0, 2] if mode != "reflect" else [1, 0]
    pads = [[0, 0] for _ in range(x.rank)]
    for axis in range(2, x.rank):
        pads[axis] = [b.pick(*sizes), b.pick(*sizes)]
    if mode == "constant" and b.rarely(8):
        pads[b.pick(0, 1)] = [1, 0]
    if mode == "constant" and b.rarely(8):
        pads[2][0] = -1
    flat = [*(p[0] for p in pads), *(p[1] for p in pads)]
    if mode == "constant" and fill is None:
        fill = b.pick(None, 0.0, 0.0, 0.7)
    if b.opset < 11:
        return b.add("Pad", [x], pads=flat, mode=mode, value=fill)
    operands: list[Value | None] = [x]
    axes = None
    if b.opset >= 18 and b.rarely(3) and not any(flat[i] for i in (0, 1, x.rank, x.rank + 1)):
        axes = b.ints(range(2, x.rank) if b.rarely(2) else range(-n, 0))
        flat = [*flat[2 : x.rank], *flat[x.rank + 2 :]]
    operands += [b.ints(flat), None if fill is None else b.scalar(fill), axes]
    while operands[-1] is None:
        operands.pop()
    return b.add("Pad", operands, mode=None if mode == "constant" and b.rarely(2) else mode)


def pad_conv(b: Builder, x: Value) -> Value:
    return conv(b, pad(b, x))


def pad_pool(b: Builder, x: Value) -> Value:
    """Padding in front of a pool: of minus infinity only in front of a MaxPool."""
    if b.rarely(2):
        return average_pool(b, pad(b, x, "constant"))
    fill = b.pick(0.0, -math.inf, -0.5, -1000.0)
    kernel = [3] * spatial(x)
    return b.add("MaxPool", [pad(b, x, "constant", fill)], **_window(b, x, kernel))


def _window(b: Builder, x: Value, kernel: Sequence[int]) -> dict[str, Any]:
    window: dict[str, Any] = {"kernel_shape": list(kernel)}
    n = len(kernel)
    if b.rarely(2):
        window["strides"] = [b.pick(1, 2) for _ in range(n)]
    form = b.pick("none", "any", "auto")
    if form == "any":
        window["pads"] = [b.pick(*range(min(k, 2))) for k in kernel] * 2
    elif form == "auto":
        window.pop("strides", None)  # past the kernel they would pad by less than nothing
        window["auto_pad"] = b.pick("SAME_UPPER", "SAME_LOWER", "VALID")
    if b.opset >= 10 and b.rarely(4) and form != "auto":
        window["ceil_mode"] = 1
    return window


def max_pool(b: Builder, x: Value) -> Value:
    """A MaxPool."""
    window = _window(b, x, [b.pick(2, 3, 1) for _ in range(spatial(x))])
    if b.opset >= 10 and b.rarely(6):
        window["dilations"] = [b.pick(1, 2) for _ in range(spatial(x))]
    return b.add("MaxPool", [x], **window)


def average_pool(b: Builder, x: Value) -> Value:
    """An AveragePool."""
    window = _window(b, x, [b.pick(2, 3, 1) for _ in range(spatial(x))])
    return b.add("AveragePool", [x], count_include_pad=b.pick(None, 1), **window)


def reduce_space(b: Builder, x: Value) -> Value:
    """The mean (or another reduction) over space."""
    form = b.pick("GlobalAveragePool", "ReduceMean", "ReduceMean", "GlobalMaxPool", "ReduceSum")
    spatial(x)
    if form.startswith("Global"):
        return b.add(form, [x])
    axes = list(range(2, x.rank)) if b.rarely(2) else list(range(2 - x.rank, 0))
    if b.rarely(5):
        axes = axes[:1]
    if b.opset < 11:
        axes = [axis % x.rank for axis in axes]
    if b.rarely(4):
        axes = axes[::-1]
    keep = b.pick(None, 1, 0)
    if b.opset < (13 if form == "ReduceSum" else 18):
        y = b.add(form, [x], axes=axes, keepdims=keep)
    else:
        y = b.add(form, [x, b.ints(axes)], keepdims=keep)
    if keep != 0 or b.rarely(2):
        return y
    return _put_back(b, x, y, sorted(axis % x.rank for axis in axes))


def _put_back(b: Builder, x: Value, y: Value, axes: Sequence[int]) -> Value:
    """The axes that a reduction took away, most often where they were."""
    if b.rarely(2):
        return unsqueeze(b, y, [0, *axes[1:]] if b.rarely(5) else axes)
    copied = {axis for axis in (0, 1) if x.size(axis) is None or b.rarely(2)}
    rest = (0 if axis in copied else x.fixed(axis) for axis in range(x.rank) if axis not in axes)
    return b.add("Reshape", [y, b.ints([1 if a in axes else next(rest) for a in range(x.rank)])])


def upsample(b: Builder, x: Value) -> Value:
    """A Resize to twice the size."""
    b.needs(13)
    n = spatial(x)
    scales = b.initializer(np.asarray([1, 1, *[2] * n], np.float32), "scales")
    return b.add("Resize", [x, None, scales], mode="nearest")
