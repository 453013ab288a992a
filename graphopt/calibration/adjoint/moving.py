"""Rules of operators that only move elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphopt.calibration.adjoint.operands import (
    ints,
    pad_zeros,
    shaped_like,
    unbroadcast,
    zeros_like,
)
from graphopt.calibration.adjoint.tape import Found, Step
from graphopt.graph.scope import attribute_int, attribute_ints, attribute_string


def reshape(step: Step) -> Found:
    """Back to the shape of the input."""
    return {0: shaped_like(step, step.g, step.input(0))}


def transpose(step: Step) -> Found:
    """Transpose by the inverse permutation."""
    rank = len(step.tape.shape(step.y))
    perm = attribute_ints(step.node, "perm") or tuple(reversed(range(rank)))
    return {0: step.tape.op("Transpose", step.g, perm=np.argsort(perm).tolist())}


def concat(step: Step) -> Found:
    """Split into the parts."""
    tape, inputs = step.tape, [step.input(i) for i in range(len(step.node.inputs))]
    axis = attribute_int(step.node, "axis", 1) % len(tape.shape(step.y))
    sizes = [tape.size(value, axis) for value in inputs]
    if len(inputs) == 1:
        return {0: step.g}
    if tape.opset < 13:
        return dict(
            enumerate(tape.node("Split", [step.g], {"axis": axis, "split": sizes}, len(sizes)))
        )
    operands = [step.g, tape.constant(sizes)]
    return dict(enumerate(tape.node("Split", operands, {"axis": axis}, len(sizes))))


def split(step: Step) -> Found:
    """Concatenate; a part that is not used gives zeros."""
    pairs = zip(step.received, step.node.outputs, strict=True)
    parts = [zeros_like(step, value) if g is None else g for g, value in pairs]
    return {0: step.tape.op("Concat", *parts, axis=attribute_int(step.node, "axis", 0))}


def slice_rule(step: Step) -> Found:
    """Put zeros between the picked elements, then around them."""
    tape, shape = step.tape, step.tape.shape(step.input(0))
    starts, ends = ints(step, "starts", 1, 10) or [], ints(step, "ends", 2, 10) or []
    axes = ints(step, "axes", 3, 10) or list(range(len(starts)))
    steps = ints(step, "steps", 4, 10) or [1] * len(starts)
    g, counts = step.g, list(tape.shape(step.y))
    begins, after = [0] * len(shape), [0] * len(shape)
    for axis, start, end, stride in zip(
        (a % len(shape) for a in axes), starts, ends, steps, strict=True
    ):
        if start == 0 and end >= 2**31 - 1 and stride == 1:
            continue
        if stride < 1:
            step.refuse("a step is negative")
        size = tape.size(step.input(0), axis)
        begins[axis] = min(start + size if start < 0 else start, size)
        if stride > 1:
            g = _spread(step, g, counts, axis, stride)
            counts[axis] *= stride
        after[axis] = size - begins[axis] - counts[axis]
    return {0: pad_zeros(step, g, begins, after)}


def _spread(step: Step, g: ir.Value, counts: Sequence[int], axis: int, stride: int) -> ir.Value:
    """Put stride - 1 zeros behind every element along an axis."""
    sizes = [0 if a == 0 and axis else n for a, n in enumerate(counts)]  # 0: as it is
    apart = step.tape.constant([*sizes[: axis + 1], 1, *sizes[axis + 1 :]])
    zeros = [0] * (len(sizes) + 1)
    zeros[axis + 1] = stride - 1
    g = pad_zeros(step, step.tape.op("Reshape", g, apart), [0] * len(zeros), zeros)
    joined = [*sizes[:axis], counts[axis] * stride, *sizes[axis + 1 :]]
    return step.tape.op("Reshape", g, step.tape.constant(joined))


def pad_rule(step: Step) -> Found:
    """Cut the padding off: the same pads, negative."""
    tape = step.tape
    if attribute_string(step.node, "mode", "constant") != "constant":
        step.refuse("its mode is not constant")
    if tape.opset < 11:
        pads = [-n for n in attribute_ints(step.node, "pads") or ()]
        return {0: tape.op("Pad", step.g, pads=pads)}
    axes = step.optional(3)
    less = tape.op("Neg", step.input(1))
    return {0: tape.op("Pad", step.g, less, *(() if axes is None else (None, axes)))}


def depth_to_space(step: Step) -> Found:
    """Space back to channels."""
    tape, block = step.tape, attribute_int(step.node, "blocksize", 1)
    if attribute_string(step.node, "mode", "DCR") == "DCR":
        return {0: tape.op("SpaceToDepth", step.g, blocksize=block)}
    packed = tape.op("SpaceToDepth", step.g, blocksize=block)  # places before channels
    channels = tape.size(step.y, 1)
    apart = tape.op("Reshape", packed, tape.constant([0, block * block, channels, -1]))
    turned = tape.op("Transpose", apart, perm=[0, 2, 1, 3])
    return {0: shaped_like(step, turned, step.input(0))}


def expand(step: Step) -> Found:
    """Sum over the copies."""
    return {0: unbroadcast(step, step.g, step.input(0))}


def space_to_depth(step: Step) -> Found:
    """Channels back to space."""
    block = attribute_int(step.node, "blocksize", 1)
    return {0: step.tape.op("DepthToSpace", step.g, blocksize=block)}
