"""Fully connected layers, and the ways to flatten a map in front of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fuzz.builder import Builder, ImpossibleError, Shape, Value, squeeze
from fuzz.linear import affine, batch_norm


def flat(b: Builder, x: Value) -> Value:
    """[N, C, ...] -> [N, K] in one of the ways exporters write it."""
    if x.rank < 2:
        raise ImpossibleError("no batch")
    if x.rank == 2:
        return x
    count = math.prod(x.fixed(axis) for axis in range(1, x.rank))
    forms = ["flatten", "0,-1", "-1,k", "shape"]
    if all(x.size(axis) == 1 for axis in range(2, x.rank)):
        forms.append("squeeze")
    form = b.pick(*forms)
    if form == "flatten":
        return b.add("Flatten", [x], axis=b.pick(None, 1, 1 - x.rank if b.opset >= 11 else 1))
    if form == "0,-1":
        return b.add("Reshape", [x, b.ints([0, b.pick(-1, count)])])
    if form == "-1,k":
        return b.add("Reshape", [x, b.ints([-1, count])])
    if form == "squeeze":
        return squeeze(b, x, range(2, x.rank))
    b.needs(13)
    batch = b.add("Gather", [b.add("Shape", [x]), b.ints([0])], axis=0)
    target = b.add("Concat", [batch, b.ints([count])], axis=0)
    return reshape_to(b, x, target, [(shape[0], count) for shape in x.shapes])


def reshape_to(b: Builder, x: Value, target: Value, shapes: Sequence[Shape]) -> Value:
    """A Reshape to a computed shape, which shape inference of one node cannot follow."""
    made = b.add("Reshape", [x, b.initializer(np.asarray([0, -1], np.int64))])
    node = b.nodes[-1]
    del b.store.initializers[node.input[1]]
    node.input[1] = target.name
    return Value(made.name, tuple(shapes), x.dtype)


def dense(b: Builder, x: Value, *, out: int | None = None) -> Value:
    """A Gemm or MatMul (+ Add) on [N, K]."""
    if x.rank != 2:
        raise ImpossibleError("no matrix")
    width = x.fixed(1)
    out = out or b.pick(4, 2, 8)
    array = b.random((width, out), width**-0.5)
    if b.rarely(3):
        y = b.add("MatMul", [x, b.weight(array, "w")])
        return y if b.rarely(3) else b.add("Add", [y, b.weight(b.random((out,), 0.5), "bias")])
    flipped = b.pick(1, 0)
    operands: list[Value | None] = [x, b.weight(array.T.copy() if flipped else array, "w")]
    if b.opset < 11 or not b.rarely(4):
        batch = x.size(0)
        shapes: list[Shape] = [(out,), (1, out), (1,), ()]
        if batch is not None:
            shapes += [(batch, out), (batch, 1)]
        operands.append(b.weight(b.random(b.pick(*shapes), 0.5), "bias"))
    return b.add(
        "Gemm",
        operands,
        transB=flipped or None,
        alpha=b.pick(None, None, 0.5),
        beta=b.pick(None, None, 2.0),
    )


def fully_connected(b: Builder, x: Value) -> Value:
    """Flattened, then one or two layers."""
    y = dense(b, flat(b, x))
    between = b.pick("nothing", "Relu", "end", "Dropout", "BatchNormalization")
    if between == "end":
        return y
    if between == "BatchNormalization":
        y = batch_norm(b, y)
    elif between != "nothing":
        y = b.add(between, [y])
    return dense(b, y)


def dense_affine(b: Builder, x: Value) -> Value:
    return affine(b, dense(b, flat(b, x)))


def matmul(b: Builder, x: Value) -> Value:
    """A product over the last axis of any value, with the constant on the left at times."""
    if x.rank < 2:
        raise ImpossibleError("no matrix")
    if b.rarely(5):
        inner = x.fixed(x.rank - 2)
        return b.add("MatMul", [b.weight(b.random((4, inner), inner**-0.5), "w"), x])
    inner = x.fixed(x.rank - 1)
    out = b.pick(inner, 4, 6)
    y = b.add("MatMul", [x, b.weight(b.random((inner, out), inner**-0.5), "w")])
    return b.add("Add", [y, b.weight(b.random((out,), 0.5), "bias")]) if b.rarely(2) else y
