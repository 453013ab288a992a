"""Rules of pooling and reductions."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from graphopt.calibration.adjoint.operands import (
    as_mask,
    channels_apart,
    expanded,
    ints,
    shaped_like,
    sum_over,
    with_ints,
)
from graphopt.calibration.adjoint.tape import Found, Step
from graphopt.calibration.adjoint.windows import Window
from graphopt.graph.scope import attribute_int, attribute_ints


def reduce(step: Step, *, since: int, mean: bool) -> Found:
    """Repeat along the reduced axes; for a mean, divided by their size."""
    tape, x = step.tape, step.input(0)
    rank = len(tape.shape(x))
    axes = sorted(a % rank for a in ints(step, "axes", 1, since) or ())
    if not axes and attribute_int(step.node, "noop_with_empty_axes", 0):
        return {0: step.g}
    axes, g = axes or list(range(rank)), step.g
    if not attribute_int(step.node, "keepdims", 1):
        g = with_ints(step, "Unsqueeze", g, "axes", axes, 13)
    if mean:
        g = _averaged(step, g)
    return {0: expanded(step, g, x)}


def global_average(step: Step) -> Found:
    """Repeat over the spatial axes, divided by their size."""
    return {0: expanded(step, _averaged(step, step.g), step.input(0))}


def global_max(step: Step) -> Found:
    """To the largest element (to each of them, if several are equal)."""
    tape, x = step.tape, step.input(0)
    largest = as_mask(step, tape.op("Not", tape.op("Less", x, step.y)))
    return {0: tape.op("Mul", step.g, largest)}


def _averaged(step: Step, g: ir.Value) -> ir.Value:
    """Divided by how many elements a mean is of; counted at run time, for any size."""
    tape = step.tape
    count = tape.op("Div", tape.op("Size", step.input(0)), tape.op("Size", step.y))
    return tape.op("Div", g, as_mask(step, count))


def average_pool(step: Step) -> Found:
    """Every element shared out evenly over its window."""
    window = Window.of(step, attribute_ints(step.node, "kernel_shape") or (), step.input(0), step.y)
    padded = bool(attribute_int(step.node, "count_include_pad", 0))
    shares = np.ones(window.count)
    for axis, count in enumerate(window.count):  # windows count what is inside, or inside the pads
        begin, size = window.begins[axis], window.size[axis]
        starts = np.arange(count)[:, None] * window.strides[axis] - begin
        at = starts + np.arange(window.kernel[axis]) * window.dilations[axis]
        low, high = (-begin, size + window.ends[axis]) if padded else (0, size)
        inside = ((at >= low) & (at < high)).sum(axis=1)
        shares /= np.expand_dims(inside, tuple(a for a in range(len(window.count)) if a != axis))
    uniform = float(shares.flat[0]) if np.ptp(shares) == 0 else shares
    g = step.tape.op("Mul", step.g, step.tape.number(uniform, step.y))
    return {0: _channelwise(step, g, window)}


def _channelwise(step: Step, g: ir.Value, window: Window) -> ir.Value:
    """Spread every element over its window, channel by channel; channels count as samples."""
    flat = channels_apart(step, g, step.y)
    ones = step.tape.number(np.ones((1, 1, *window.kernel)), step.y)
    return shaped_like(step, window.scatter(step, flat, ones), step.input(0))


def max_pool(step: Step) -> Found:
    """Every element to where the maximum of its window was."""
    window = Window.of(step, attribute_ints(step.node, "kernel_shape") or (), step.input(0), step.y)
    return {0: _by_taps(step, window) if step.tape.opset < 9 else _by_index(step, window)}


def _by_index(step: Step, window: Window) -> ir.Value:
    """Scatter to the places MaxPool names. Windows that overlap write to layers of their own."""
    tape, x = step.tape, step.input(0)
    if attribute_int(step.node, "storage_order", 0):
        step.refuse("its storage order is column-major")
    if len(step.node.outputs) < 2:
        step.node.resize_outputs(2)
    index = step.node.outputs[1]
    index.name = index.name or tape.fresh("adjoint_indices")
    layers = [-(-extent // s) for extent, s in zip(window.extents, window.strides, strict=True)]
    one, flat = math.prod(layers) == 1, tape.constant([-1])
    size = tape.op("ReduceProd", tape.run_time_shape(x), keepdims=1)
    if not one and tape.opset < 16:
        layer = np.zeros(window.count, np.int64)
        for axis, n in enumerate(layers):
            at = np.arange(window.count[axis]) % n
            others = tuple(a for a in range(len(layers)) if a != axis)
            layer = layer * n + np.expand_dims(at, others)
        index = tape.op("Add", index, tape.op("Mul", tape.constant(layer), size))
        size = tape.op("Mul", size, tape.constant([math.prod(layers)]))
    fill = ir.tensor(np.zeros(1, tape.dtype(x).numpy()))
    zeros = tape.op("ConstantOfShape", size, value=fill)
    places = (tape.op("Reshape", index, flat), tape.op("Reshape", step.g, flat))
    kind = "ScatterElements" if tape.opset >= 11 else "Scatter"
    add = "add" if not one and tape.opset >= 16 else None
    found = tape.op(kind, zeros, *places, axis=0, reduction=add)
    if not one and tape.opset < 16:
        found = tape.op("Reshape", found, tape.constant([math.prod(layers), -1]))
        found = sum_over(step, found, [0])
    return shaped_like(step, found, x)


def _by_taps(step: Step, window: Window) -> ir.Value:
    """Before MaxPool names places: compare every tap with the maximum; ties share.

    Convolutions with one-hot kernels [taps, 1, *kernel] cut the taps out and put them back.
    """
    tape, x, taps = step.tape, step.input(0), math.prod(window.kernel)
    pick = tape.number(np.eye(taps).reshape(taps, 1, *window.kernel), x)
    geometry = {"strides": window.strides, "dilations": window.dilations}

    def cut(value: ir.Value) -> ir.Value:
        return tape.op("Conv", value, pick, pads=[*window.begins, *window.ends], **geometry)

    inside = cut(tape.number(np.ones((1, 1, *window.size)), x))
    below = tape.op("Less", cut(channels_apart(step, x, x)), channels_apart(step, step.y, step.y))
    share = tape.op("Mul", as_mask(step, tape.op("Not", below)), inside)
    weight = tape.op("Div", channels_apart(step, step.g, step.y), sum_over(step, share, [1]))
    return shaped_like(step, window.scatter(step, tape.op("Mul", share, weight), pick), x)
