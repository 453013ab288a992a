"""Several linear operators that belong together: branches, chains, modules."""

from __future__ import annotations

from fuzz.builder import Builder, Value
from fuzz.dense import dense, flat
from fuzz.linear import (
    batch_norm,
    channel_affine,
    channels,
    conv,
    conv_same,
    pointwise,
    same_placing,
    spatial,
)


def linear_chain(b: Builder, x: Value) -> Value:
    """Convolutions with nothing non-linear between."""
    first = b.pick(pointwise, conv, conv_same)
    y = first(b, x)
    between = b.pick(None, None, batch_norm, channel_affine)
    if between is not None:
        y = between(b, y)
    return b.pick(conv, pointwise, conv_same)(b, y)


def branches(b: Builder, x: Value) -> Value:
    """Linear branches that meet in a sum, as RepVGG, ACNet and DBB train them."""
    n, c = spatial(x), channels(x)
    stride = 2 if b.rarely(5) else 1
    group = b.pick(1, 1, c)
    out = c if group > 1 or b.rarely(2) else b.pick(4, 6, 8)
    sums: Value | None = None
    for _ in range(b.pick(2, 3)):
        kind = b.pick("3", "1", "identity", "13", "31", "pool", "odd")
        kernel = tuple(3 if kind in ("3", "odd") else 1 for _ in range(n))
        if kind in ("13", "31"):
            kernel = (1, *[3] * (n - 1)) if kind == "13" else (3, *[1] * (n - 1))
        if kind in ("identity", "pool") and out == c and stride == 1:
            y = x if kind == "identity" else same_pool(b, x)
        else:
            placing = same_placing(kernel, stride)
            if kind == "odd":  # the same size of map, but shifted
                placing["pads"] = [2] * n + [0] * n
            y = conv(b, x, out=out, kernel=kernel, group=group, placing=placing)
        if b.rarely(2) or y is x:
            y = batch_norm(b, y)
        sums = y if sums is None else b.add("Add", b.pick([sums, y], [y, sums]))
    assert sums is not None
    return sums


def same_pool(b: Builder, x: Value) -> Value:
    """An average pool that keeps the shape."""
    n = spatial(x)
    return b.add(
        "AveragePool",
        [x],
        kernel_shape=[3] * n,
        pads=[1] * (2 * n),
        count_include_pad=b.pick(1, None),
    )


def inception(b: Builder, x: Value) -> Value:
    """Parallel convolutions on one value into a Concat or an Add, with activations or without."""
    n = spatial(x)
    kernel = tuple(b.pick(1, 3) for _ in range(n))
    act = b.pick(None, "Relu", "Sigmoid")
    alike = not b.rarely(3)
    parts = []
    for _ in range(b.pick(2, 3)):
        own = kernel if alike else tuple(b.pick(1, 3) for _ in range(n))
        y = conv(b, x, kernel=own, group=1, out=b.pick(2, 3, 4), placing=same_placing(own))
        if b.rarely(5):
            y = b.pick(batch_norm, channel_affine)(b, y)
        parts.append(y if act is None else b.add(act, [y]))
    if b.rarely(5):
        parts.append(x)
    if b.rarely(6):
        parts.append(parts[0])
    return b.add("Concat", parts, axis=b.pick(1, 1 - x.rank) if b.opset >= 11 else 1)


def residual(b: Builder, x: Value) -> Value:
    """x + f(x)."""
    y = conv_same(b, x)
    if b.rarely(2):
        y = batch_norm(b, y)
    if b.rarely(2):
        y = conv_same(b, b.add("Relu", [y]))
    return b.add(b.pick("Add", "Sub"), b.pick([x, y], [y, x]))


def squeeze_excite(b: Builder, x: Value) -> Value:
    """x * sigmoid(W2 relu(W1 mean(x))), by 1x1 convolutions or fully connected layers."""
    c, n = channels(x), spatial(x)
    y = b.add("GlobalAveragePool", [x])
    if b.rarely(2):
        y = pointwise(b, y)
        y = conv(b, b.add("Relu", [y]), out=c, kernel=(1,) * n, group=1, placing={})
    else:
        y = dense(b, flat(b, y))
        y = dense(b, b.add("Relu", [y]), out=c)
        y = b.add("Reshape", [y, b.ints([0, c, *[1] * n])])
    return b.add("Mul", b.pick([x, b.add("Sigmoid", [y])], [b.add("Sigmoid", [y]), x]))
